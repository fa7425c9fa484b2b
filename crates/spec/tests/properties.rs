//! What holds for every input.

#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

use burstfs_spec::{Accumulator, JobSpec, NoProfiles, Values};
use proptest::prelude::*;

fn add_all(directives: &[String]) -> JobSpec {
    let mut accumulator = Accumulator::new();
    for directive in directives {
        accumulator.add(directive, &NoProfiles).unwrap_or_else(|error| panic!("{directive}: {error}"));
    }
    accumulator.finish().unwrap().unwrap()
}

/// Something that looks like a directive, so that the deeper parts of the parser are reached.
fn near_directive() -> impl Strategy<Value = String> {
    let token = prop_oneof![
        Just("create"),
        Just("stage_in"),
        Just("stage_out"),
        Just("none"),
        Just("capacity="),
        Just("per_node="),
        Just("4TiB"),
        Just("1.5"),
        Just("K"),
        Just("source="),
        Just("destination="),
        Just("/in"),
        Just("/lus/"),
        Just(".."),
        Just("%j"),
        Just("%"),
        Just("$HOME"),
        Just("$"),
        Just("'"),
        Just("\\"),
        Just(":"),
        Just(","),
        Just(" "),
        Just("="),
        Just("preserve="),
        Just("mode,times"),
        Just("layout="),
        Just("auto"),
        Just("ä"),
        Just("name="),
        Just("job"),
        Just("*"),
        Just("\u{0}"),
        Just("type="),
        Just("list="),
        Just("exclude="),
        Just("bwlimit="),
        Just("["),
        Just("]"),
        Just("file"),
    ];
    prop::collection::vec(token, 0..24).prop_map(|tokens| tokens.concat())
}

/// A path in the way of a directive: any characters, each escaped.
fn path(is_persistent: bool, is_source: bool) -> impl Strategy<Value = String> {
    let head = if is_persistent { vec!["/", "$HOME", "$SLURM_SUBMIT_DIR", "%d"] } else { vec!["/"] };
    let piece = prop_oneof![
        any::<char>()
            .prop_filter("no control characters", |c| !c.is_control() && *c != '.')
            .prop_map(|c| format!("\\{c}")),
        prop::sample::select(vec!["%j", "%A", "%a", "%u", "%x", "%%", "$USER", "/", "-a.b", "'x y'"])
            .prop_map(str::to_owned),
    ];
    let wild = if is_source { vec!["", "*", "?", "[a,b]", r"[!\]\ x-z]*"] } else { vec![""] };
    (prop::sample::select(head), prop::collection::vec(piece, 1..8), prop::sample::select(wild))
        .prop_map(|(head, pieces, wild)| format!("{head}{}{}", pieces.concat(), wild))
}

fn directives() -> impl Strategy<Value = Vec<String>> {
    let word = |words: &[&'static str]| prop::sample::select(words.to_vec());
    let create = (
        1_u64..1 << 50,
        word(&["capacity", "per_node"]),
        word(&["auto", "local", "striped", "striped:size=2M,count=3"]),
        word(&["auto", "tcp"]),
    )
        .prop_map(|(bytes, key, layout, transport)| {
            format!("create {key}={}.{:03}KB layout={layout} transport={transport}", bytes / 1000, bytes % 1000)
        });
    let options = (
        word(&["all", "mode", "mode,times,sparse"]),
        word(&["checksum", "size", "none"]),
        word(&["changed", "all"]),
        word(&["", "bwlimit=7MB", r"exclude=*.o include='a ,b' exclude=x\,[,\ \\]*/ exclude=a\\b"]),
    )
        .prop_map(|(preserve, verify, update, rest)| {
            format!("preserve={preserve} verify={verify} update={update} {rest}")
        });
    let stage_in = (path(true, true), path(false, false), options.clone())
        .prop_map(|(from, to, rest)| format!("stage_in source={from} destination=/in/{to} {rest}"));
    let when = word(&["end", "continuous", "interval:15m", "interval:1h30m", "manual"]);
    let times =
        (when, word(&["auto", "10m", "2h"])).prop_map(|(when, deadline)| format!("when={when} deadline={deadline}"));
    let stage_out = (path(false, true), path(true, false), options, word(&["file", "none"]), times).prop_map(
        |(from, to, rest, atomic, times)| {
            format!("stage_out source={from} destination={to} {rest} atomic={atomic} {times}")
        },
    );
    (create, stage_in, stage_out).prop_map(|(create, stage_in, stage_out)| vec![create, stage_in, stage_out])
}

proptest! {
    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        if let Err(error) = Accumulator::new().add_bytes(&bytes, &NoProfiles) {
            prop_assert!(!error.render().is_empty());
        }
        if let Ok(text) = std::str::from_utf8(&bytes) {
            prop_assert!(JobSpec::from_json(text).is_err());
        }
    }

    #[test]
    fn no_near_directive_panics(first in near_directive(), second in near_directive()) {
        let mut accumulator = Accumulator::new();
        for text in [first, second] {
            if let Err(error) = accumulator.add(&text, &NoProfiles) {
                prop_assert!(error.place.is_none_or(|place| place.directive.get(place.mark).is_some()));
            }
        }
        if let Some(spec) = accumulator.finish().unwrap() {
            prop_assert_eq!(JobSpec::from_json(&spec.to_json().unwrap()), Ok(spec));
        }
    }

    #[test]
    fn json_and_printed_directives_give_the_same_again(directives in directives()) {
        let spec = add_all(&directives);
        let json = spec.to_json().unwrap();
        let read = JobSpec::from_json(&json).unwrap();
        prop_assert_eq!(&read, &spec);
        prop_assert_eq!(read.to_json().unwrap(), json);
        prop_assert_eq!(add_all(&spec.directives()), spec);
    }

    #[test]
    fn bound_paths_stay_inside(directives in directives(), value in "\\PC{0,8}") {
        let text = Some(value.clone());
        let path = Some(format!("/{value}"));
        let values = Values {
            job_id: text.clone(), array_job_id: text.clone(), array_task_id: text.clone(), user: text.clone(),
            job_name: text.clone(), env_user: text, work_dir: path.clone(), home: path.clone(), submit_dir: path,
        };
        if let Ok(bound) = add_all(&directives).bind(&values) {
            let source = &bound.stage_out[0].source;
            for inside in [bound.stage_in[0].destination.resolved(), source.resolved()] {
                let Ok(inside) = inside else {
                    prop_assert!(source.is_pattern() && source.glob().is_ok());
                    continue;
                };
                prop_assert!(inside.starts_with('/') && inside.split('/').all(|part| part != ".."), "{}", inside);
            }
            let source = &bound.stage_in[0].source;
            prop_assert!(source.is_pattern() || source.resolved().unwrap().starts_with('/'));
            prop_assert_eq!(JobSpec::from_json(&bound.to_json().unwrap()), Ok(bound));
        }
    }
}
