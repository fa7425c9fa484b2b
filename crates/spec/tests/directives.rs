//! Each rule of the directives' grammar, by example.

#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::time::Duration;

use burstfs_spec::{
    Accumulator, Capacity, Compat, CreateItems, DrainDeadline, DrainOn, DrainOnError, DrainWhen, EntryType, JobSpec,
    Preserve, PreserveSet, ProfileError, SpecError, StageInOnError, Tmpdir, Transport, Update, Values, Verify,
};
use burstfs_types::{Code, LayoutPolicy, StripePattern};

fn profiles(name: &str) -> Result<CreateItems, ProfileError> {
    match name {
        "ckpt" => Ok(CreateItems::parse("per_node=100GiB layout=local").unwrap()),
        _ => Err(ProfileError::Unknown { known: vec!["ckpt".to_owned()] }),
    }
}

fn merge(directives: &[&str]) -> Result<Option<JobSpec>, SpecError> {
    let mut accumulator = Accumulator::new();
    for directive in directives {
        accumulator.add(directive, &profiles)?;
    }
    accumulator.finish()
}

fn spec(directives: &[&str]) -> JobSpec {
    merge(directives).unwrap().unwrap()
}

fn total_bytes(spec: &JobSpec) -> u64 {
    match spec.create.capacity {
        Some(Capacity::Total(size)) => size.bytes(),
        other => panic!("{other:?}"),
    }
}

/// What is refused, its code, and the marked text.
fn refused(directives: &[&str], code: Code, marked: &str) -> String {
    let error = merge(directives).unwrap_err();
    let place = error.place.clone().unwrap_or_else(|| panic!("{directives:?}: {error}"));
    let found = (error.code, &place.directive[place.mark]);
    assert_eq!(found, (code, marked), "{directives:?}: {error}");
    error.message
}

#[test]
fn the_examples_of_the_interface() {
    assert_eq!(total_bytes(&spec(&["4TiB"])), 4_398_046_511_104);
    let ckpt = spec(&["ckpt"]);
    assert_eq!((ckpt.bytes_per_node(4, 0), ckpt.create.layout), (100 << 30, LayoutPolicy::Local));
    let staged = spec(&["stage_in  source=/lus/me/in/ destination=/in"]);
    assert_eq!(staged.stage_in[0].source.to_string(), "/lus/me/in/");
    assert_eq!(staged.stage_in[0].destination.resolved(), Ok("/in"));
    assert_eq!(staged.create.capacity, None);
    refused(&["capacity=4TiB layout=auto tolerate=1"], Code::NotBuiltYet, "1");
    let timed = spec(&["stage_out source=/out/ destination=/lus/me/run-%j when=interval:15m"]);
    assert_eq!(timed.stage_out[0].when, DrainWhen::Interval(Duration::from_secs(900)));
}

#[test]
fn a_mistake_is_shown_with_its_place() {
    let error = merge(&["capcity=4TiB layout=auto"]).unwrap_err();
    let expected = [
        "burstfs: E102: unknown key \"capcity\"; did you mean \"capacity\"?",
        "  --burstfs=\"capcity=4TiB layout=auto\"",
        "             ^^^^^^^",
    ];
    assert_eq!(error.render(), expected);
}

#[test]
fn create_keys_merge_and_the_later_wins() {
    let merged = spec(&["4TiB layout=local name=a", "8TiB", "transport=tcp"]);
    assert_eq!(total_bytes(&merged), 8 << 40);
    assert_eq!(merged.create.layout, LayoutPolicy::Local);
    assert_eq!(merged.create.transport, Transport::Tcp);
    assert_eq!(spec(&["8TiB transport=rdma"]).create.transport, Transport::Rdma);
    let create = spec(&["8TiB tmpdir=yes compat=dw", "compat=none"]).create;
    assert_eq!((create.tmpdir, create.compat), (Tmpdir::Yes, Compat::None));
    refused(&["create tmpdir=/x"], Code::BadValue, "/x");
    assert_eq!(merged.create.name.as_str(), "a");
    assert!(matches!(spec(&["4TiB", "per_node=1TiB"]).create.capacity, Some(Capacity::PerNode(_))));
    assert_eq!(total_bytes(&spec(&["per_node=1TiB", "capacity=4TiB"])), 4 << 40);
    assert_eq!(total_bytes(&spec(&["ckpt capacity=4TiB"])), 4 << 40);
    assert_eq!(spec(&["ckpt", "layout=auto"]).create.layout, LayoutPolicy::Auto);
}

#[test]
fn stages_append_and_none_drops() {
    let two = ["stage_in source=/a/ destination=/a", "4TiB", "stage_in source=/b/ destination=/b"];
    assert_eq!(spec(&two).stage_in.len(), 2);
    assert_eq!(merge(&["4TiB", "none"]), Ok(None));
    assert_eq!(merge(&[]), Ok(None));
    let after = spec(&["4TiB name=x", "stage_in source=/a/ destination=/a", "none", "1TiB"]);
    assert_eq!((total_bytes(&after), after.create.name.as_str(), after.stage_in.len()), (1 << 40, "job", 0));
    refused(&["none 4TiB"], Code::BadSyntax, "4TiB");
}

#[test]
fn verbs_and_separators() {
    assert_eq!(spec(&["create,4TiB,layout=local"]), spec(&["create 4TiB layout=local"]));
    assert_eq!(spec(&["create"]), spec(&["name=job"]));
    assert_eq!(spec(&["4TiB,layout=local"]), spec(&["  capacity=4T\tlayout='local' "]));
    refused(&["attach name=x"], Code::NotBuiltYet, "attach");
    let message = refused(&["stagein source=/a destination=/b"], Code::UnknownProfile, "stagein");
    assert!(message.contains("did you mean \"stage_in\"?"), "{message}");
    let message = refused(&["ckt"], Code::UnknownProfile, "ckt");
    assert!(message.contains("did you mean \"ckpt\"?"), "{message}");
    refused(&["layout=local 4TiB"], Code::BadSyntax, "4TiB");
    refused(&["layout=local ckpt"], Code::BadSyntax, "ckpt");
    refused(&["capacity"], Code::BadSyntax, "capacity");
    refused(&["stage_in 4TiB"], Code::BadSyntax, "4TiB");
    refused(&["capacity = 4TiB"], Code::BadSyntax, "=");
    let message = refused(&["capacity=4TiB, layout=auto"], Code::BadSize, "4TiB,");
    assert!(message.contains("white space only"), "{message}");
}

#[test]
fn the_short_form_within_create() {
    let short = spec(&["4TiB stage_in=/lus/me/in/:/in stage_out=/out/:/lus/me/run-%j"]);
    let long = spec(&[
        "4TiB",
        "stage_in source=/lus/me/in/ destination=/in",
        "stage_out source=/out/ destination=/lus/me/run-%j",
    ]);
    assert_eq!(short, long);
    assert_eq!(spec(&["1T,stage_in=/a/:/a,stage_in=/b/:/b"]).stage_in.len(), 2);
    let escaped = spec(&[r"1T stage_in=/lus/a\:b/:/in"]);
    assert_eq!(escaped.stage_in[0].source.resolved(), Ok("/lus/a:b/"));
    refused(&["4TiB stage_in=/lus/me/in"], Code::BadSyntax, "/lus/me/in");
    refused(&["4TiB stage_in=/a:/b:/c"], Code::BadSyntax, "/a:/b:/c");
    refused(&["4TiB stage_in=:/c"], Code::BadSyntax, ":/c");
    refused(&["4TiB stage_in=in:/c"], Code::BadPath, "in");
    refused(&["stage_in stage_in=/a:/b"], Code::UnknownKey, "stage_in");
}

#[test]
fn refused_values() {
    refused(&["4"], Code::BadSize, "4");
    refused(&["4XB"], Code::BadSize, "4XB");
    refused(&["-4T"], Code::BadSize, "-4T");
    refused(&["capacity=0T"], Code::BadSize, "0T");
    refused(&["capacity="], Code::BadValue, "capacity=");
    refused(&["capacity=1T capacity=2T"], Code::DuplicateKey, "capacity");
    refused(&["1T capacity=2T"], Code::DuplicateKey, "capacity");
    refused(&["capacity=1T per_node=2T"], Code::Conflict, "per_node");
    refused(&["1T per_node=2T"], Code::Conflict, "per_node");
    refused(&["name=Job"], Code::BadValue, "Job");
    refused(&["tolerate=x"], Code::BadValue, "x");
    let message = refused(&["layout=locl"], Code::BadValue, "locl");
    assert!(message.contains("did you mean \"local\"?"), "{message}");
    for value in ["stripped:count=2", "striped:", "striped:count=0", "striped:count=4,count=4", "striped:size=1", "x"] {
        refused(&[&format!("create layout={value}")], Code::BadValue, value);
    }
    let message = refused(&["4TiB,layout=striped:count=4,size=1M"], Code::UnknownKey, "size");
    assert!(message.contains("layout='striped:count=N,size=S'"), "{message}");
    let message = refused(&["colour=red"], Code::UnknownKey, "colour");
    assert_eq!(message, "unknown key \"colour\" of create");
    refused(&["source=/a"], Code::UnknownKey, "source");
    refused(&["stage_in source=/a destination=/b on=always"], Code::UnknownKey, "on");
    refused(&["stage_in source=/a source=/b destination=/b"], Code::DuplicateKey, "source");
    refused(&["stage_in source=/a"], Code::BadSyntax, "stage_in");
    refused(&["stage_out destination=/a"], Code::BadSyntax, "stage_out");
    refused(&["stage_in source=/a/ destination=/b type=file"], Code::Conflict, "file");
    refused(&["stage_in source=/a destination=/b verify=sum"], Code::BadValue, "sum");
    refused(&["stage_in source=/a destination=/b preserve=mode,colour"], Code::BadValue, "mode,colour");
    refused(&["stage_in source=/a destination=/b preserve=mode,mode"], Code::BadValue, "mode,mode");
}

#[test]
fn what_is_not_built_is_refused_as_such() {
    for (item, marked) in [
        ("mode=private", "private"),
        ("servers=4", "4"),
        ("servers=dedicated:2", "dedicated:2"),
        ("redundancy=mirror", "mirror"),
        ("tolerate=1", "1"),
        ("on_full=drain", "drain"),
        ("mount=/x", "mount"),
        ("requeue=keep", "keep"),
        ("lifetime=2days", "lifetime"),
    ] {
        refused(&[&format!("create {item}")], Code::NotBuiltYet, marked);
    }
    refused(&["stage_in source=/a destination=/b when=later"], Code::BadValue, "later");
}

#[test]
fn what_an_error_does() {
    let of = |verb: &str, items: &str| format!("{verb} source=/a destination=/b {items}");
    for (word, on_error) in
        [("fail", StageInOnError::Fail), ("warn", StageInOnError::Warn), ("hold", StageInOnError::Hold)]
    {
        let written = spec(&[&of("stage_in", &format!("on_error={word}"))]);
        assert_eq!(written.stage_in[0].on_error, on_error);
        assert_eq!(JobSpec::from_json(&written.to_json().unwrap()).unwrap(), written);
        let while_it_runs = of("stage_in", &format!("when=async on_error={word}"));
        match on_error {
            StageInOnError::Fail => drop(spec(&[&while_it_runs])),
            StageInOnError::Warn | StageInOnError::Hold => drop(refused(&[&while_it_runs], Code::Conflict, word)),
        }
    }
    for (word, on_error) in [("fail", DrainOnError::Fail), ("warn", DrainOnError::Warn), ("hold", DrainOnError::Hold)] {
        assert_eq!(spec(&[&of("stage_out", &format!("on_error={word}"))]).stage_out[0].on_error, on_error);
    }
    assert_eq!(spec(&[&of("stage_in", "")]).stage_in[0].on_error, StageInOnError::Fail);
    assert_eq!(spec(&[&of("stage_out", "")]).stage_out[0].on_error, DrainOnError::Hold);
    let forged =
        spec(&[&of("stage_in", "on_error=warn")]).to_json().unwrap().replace(r#""when":"before""#, r#""when":"async""#);
    assert_eq!(JobSpec::from_json(&forged).unwrap_err().code, Code::Conflict);
}

#[test]
fn what_depends_on_the_jobs_end_is_drained_after_it() {
    let out = |items: &str| format!("stage_out source=/a destination=/b {items}");
    for (word, on) in [("always", DrainOn::Always), ("success", DrainOn::Success), ("failure", DrainOn::Failure)] {
        let written = spec(&[&out(&format!("on={word}"))]);
        assert_eq!(written.stage_out[0].on, on);
        assert_eq!(JobSpec::from_json(&written.to_json().unwrap()).unwrap(), written);
        for when in ["continuous", "interval:15m", "manual"] {
            let directive = out(&format!("on={word} when={when}"));
            match on {
                DrainOn::Always => drop(spec(&[&directive])),
                DrainOn::Success | DrainOn::Failure => drop(refused(&[&directive], Code::Conflict, word)),
            }
        }
    }
    refused(&[&out("on=error")], Code::BadValue, "error");
    let forged = spec(&[&out("on=success")]).to_json().unwrap().replace(r#""when":"end""#, r#""when":"continuous""#);
    assert_eq!(JobSpec::from_json(&forged).unwrap_err().code, Code::Conflict);
}

#[test]
fn one_place_may_be_for_success_and_for_failure() {
    let (success, failure) =
        ("stage_out source=/a/ destination=/b on=success", "stage_out source=/c/ destination=/b/x on=failure");
    let both = spec(&[success, failure]);
    assert_eq!(JobSpec::from_json(&both.to_json().unwrap()).unwrap(), both);
    for third in ["on=success", "on=failure", "on=always"] {
        refused(
            &[success, failure, &format!("stage_out source=/d/ destination=/b/x/y {third}")],
            Code::Conflict,
            "/b/x/y",
        );
    }
}

#[test]
fn only_one_directory_appears_at_once() {
    for source in ["/a*/ atomic=dir", "/a type=list list=/l atomic=dir"] {
        refused(&[&format!("stage_out source={source} destination=/b")], Code::Conflict, "dir");
    }
}

#[test]
fn retain_is_a_duration_of_stage_out() {
    for text in ["0s", "1", "24", "soon", "1ms", "20years"] {
        refused(&[&format!("stage_out source=/a destination=/b retain={text}")], Code::BadValue, text);
    }
    refused(&["stage_in source=/a destination=/b retain=24h"], Code::UnknownKey, "retain");
    let short = spec(&["4TiB stage_out=/out/:/lus/run-%j"]);
    assert_eq!(short.stage_out[0].retain.as_secs(), 86_400);
}

#[test]
fn times_of_drains() {
    let out = |items: &str| spec(&[&format!("stage_out source=/a destination=/b {items}")]).stage_out[0].clone();
    let default = out("");
    assert_eq!((default.when, default.deadline), (DrainWhen::End, DrainDeadline::Auto));
    assert_eq!(out("when=continuous").when, DrainWhen::Continuous);
    let (quarter, hours) = (Duration::from_secs(900), Duration::from_secs(7200));
    let timed = out("when=interval:15m deadline=2h");
    assert_eq!((timed.when, timed.deadline), (DrainWhen::Interval(quarter), DrainDeadline::Before(hours)));
    for (item, marked) in [("when=interval:15", "interval:15"), ("when=now", "now"), ("deadline=soon", "soon")] {
        refused(&[&format!("stage_out source=/a destination=/b {item}")], Code::BadValue, marked);
    }
    refused(&["stage_in source=/a destination=/b deadline=2h"], Code::UnknownKey, "deadline");
    for when in ["continuous", "interval:15m", "manual"] {
        refused(&[&format!("stage_out source=/a destination=/b atomic=dir when={when}")], Code::Conflict, "dir");
    }
}

#[test]
fn layouts() {
    for text in ["striped:count=all,size=1MiB", "striped:count=4,size=64KiB"] {
        let policy: LayoutPolicy = text.parse().unwrap();
        assert_eq!(spec(&[&format!("4TiB layout={text}")]).create.layout, policy);
        assert_eq!(spec(&[&format!("4TiB,layout='{text}'")]).create.layout, policy);
    }
    assert_eq!(spec(&["4TiB,layout=striped"]).create.layout, LayoutPolicy::Striped(StripePattern::default()));
    let forged = spec(&["4TiB"]).to_json().unwrap().replace(r#""layout":"auto""#, r#""layout":"striped:count=0""#);
    assert_eq!(JobSpec::from_json(&forged).unwrap_err().code, Code::Request);
}

#[test]
fn what_is_built_is_taken() {
    let all = spec(&[
        "capacity=1T name=x mode=shared layout=auto servers=all redundancy=none tolerate=0 on_full=enospc \
         requeue=fresh transport=auto tmpdir=no compat=none",
        "stage_in source=/a destination=/b type=directory when=before on_error=fail preserve=mode,times verify=size \
         update=all",
        "stage_out source=/a destination=/c type=auto when=end on=always on_error=hold preserve=all verify=none \
         atomic=none update=changed retain=2days",
    ]);
    let stage = &all.stage_in[0];
    assert_eq!((stage.entry_type, stage.verify, stage.update), (EntryType::Directory, Verify::Size, Update::All));
    let kept: Vec<Preserve> = stage.preserve.iter().collect();
    assert_eq!(kept, [Preserve::Mode, Preserve::Times]);
    assert_eq!(all.stage_out[0].preserve, PreserveSet::ALL);
    assert_eq!(all.stage_out[0].retain.as_secs(), 2 * 86_400);
    let quoted = spec(&["stage_in,source=/a,destination=/b,preserve='mode,times'"]);
    assert_eq!(quoted.stage_in[0].preserve, stage.preserve);
}

#[test]
fn what_is_copied_and_how_fast() {
    let stage = &spec(&[r"stage_in source=/lus/%j/run-[0-9]*/ destination=/in exclude=*.tmp include='a b\*c' exclude=[x\]y]/ bwlimit=1.5GB/s"])
        .stage_in[0];
    assert!(stage.source.is_pattern() && stage.entry_type == EntryType::Auto);
    let filters: Vec<String> = stage.filters.iter().map(ToString::to_string).collect();
    assert_eq!(filters, ["exclude=*.tmp", r"include=a\ b\*c", r"exclude=[x\]y]/"]);
    assert_eq!(
        stage.bwlimit.map(|rate| (rate.bytes_per_second(), rate.to_string())),
        Some((1_500_000_000, "1500MB/s".to_owned()))
    );
    let out = &spec(&["stage_out source=/out destination=/lus/x type=list list=$HOME/names bwlimit=1MiB"]).stage_out[0];
    assert_eq!((out.entry_type, out.bwlimit.unwrap().bytes_per_second()), (EntryType::List, 1 << 20));
    let home = Values { home: Some("/home/alice".to_owned()), ..Values::default() };
    let bound = spec(&["stage_in source=/a destination=/b list=$HOME/names"]).bind(&home).unwrap();
    assert_eq!(bound.stage_in[0].list.as_ref().unwrap().resolved(), Ok("/home/alice/names"));
    assert_eq!(bound.stage_in[0].entry_type, EntryType::List);

    for (item, code, marked) in [
        ("bwlimit=5", Code::BadSize, "5"),
        ("bwlimit=5MB/m", Code::BadSize, "5MB/m"),
        ("bwlimit=5MB bwlimit=6MB", Code::DuplicateKey, "bwlimit"),
        ("exclude=[a", Code::BadValue, "[a"),
        ("exclude=[[:digits:]]", Code::BadValue, "[[:digits:]]"),
        ("include='- x'", Code::BadValue, "'- x'"),
        ("includ=x", Code::UnknownKey, "includ"),
        ("type=list", Code::Conflict, "list"),
        ("type=file list=/l", Code::Conflict, "/l"),
        ("list=l", Code::BadPath, "l"),
        ("list=/l*", Code::BadPath, "*"),
        ("list=/l list=/m", Code::DuplicateKey, "list"),
    ] {
        refused(&[&format!("stage_in source=/a destination=/b {item}")], code, marked);
        refused(&[&format!("stage_out source=/a destination=/b {item}")], code, marked);
    }
    refused(&["stage_in source=/a* destination=/b list=/l"], Code::Conflict, "/l");
    refused(&["stage_in source=/a[b destination=/b"], Code::BadPath, "[");
    // Where a pattern's matches go is not known here: their destination is taken as a whole.
    refused(&["stage_in source=/a/* destination=/in/", "stage_in source=/b destination=/in/"], Code::Conflict, "/in/");
}

#[test]
fn paths() {
    refused(&["stage_in source=in destination=/in"], Code::BadPath, "in");
    refused(&["stage_in source=/in destination=in"], Code::BadPath, "in");
    refused(&["stage_in source=/in destination=/../in"], Code::BadPath, "/../in");
    refused(&["stage_out source=/a/../../b destination=/lus"], Code::BadPath, "/a/../../b");
    refused(&["stage_out source=/out destination=/lus/%y"], Code::BadPath, "%y");
    refused(&["stage_out source=/out destination=/lus/$LOGNAME"], Code::BadPath, "$LOGNAME");
    refused(&["stage_out source=/out destination=/lus/*"], Code::BadPath, "*");
    let quoted = spec(&["stage_in source='$HOME/my dir/' destination=/in"]);
    let home = Values { home: Some("/home/alice".to_owned()), ..Values::default() };
    let bound = quoted.bind(&home).unwrap();
    assert_eq!(bound.stage_in[0].source.resolved(), Ok("/home/alice/my dir/"));
}

#[test]
fn overlapping_destinations() {
    let second = |first: &str, second: &str| merge(&[first, second]).map(|_| ()).map_err(|error| error.code);
    let stage = |source: &str, destination: &str| format!("stage_in source={source} destination={destination}");
    assert_eq!(second(&stage("/a/", "/in"), &stage("/b/", "/in")), Err(Code::Conflict));
    assert_eq!(second(&stage("/a/", "/in"), &stage("/b/", "/in/b")), Err(Code::Conflict));
    assert_eq!(second(&stage("/a/", "/in/a"), &stage("/b/", "//in/./")), Err(Code::Conflict));
    assert_eq!(second(&stage("/a/", "/"), &stage("/b/", "/in")), Err(Code::Conflict));
    assert_eq!(second(&stage("/a", "/in"), &stage("/b", "/in")), Err(Code::Conflict));
    assert_eq!(second(&stage("/a", "/in/"), &stage("/b", "/in/")), Ok(()));
    assert_eq!(second(&stage("/x/a", "/in/"), &stage("/y/a", "/in/")), Err(Code::Conflict));
    assert_eq!(second(&stage("/a/", "/in1"), &stage("/b/", "/in")), Ok(()));
    refused(
        &["stage_out source=/a/ destination=/lus/%j", "stage_out source=/b/ destination=/lus/%j/b"],
        Code::Conflict,
        "/lus/%j/b",
    );
    let hidden = ["stage_out source=/a/ destination=/lus/%j", "stage_out source=/b/ destination=/lus/42"];
    let values = Values { job_id: Some("42".to_owned()), ..Values::default() };
    assert_eq!(spec(&hidden).bind(&values).unwrap_err().code, Code::Conflict);
}

#[test]
fn an_error_leaves_the_accumulator_as_it_was() {
    let mut accumulator = Accumulator::new();
    accumulator.add("4TiB", &profiles).unwrap();
    let before = accumulator.clone();
    assert!(accumulator.add("8TiB stage_in=/a/:/a stage_in=/b/:/a", &profiles).is_err());
    assert_eq!(accumulator, before);
}

#[test]
fn too_large_is_refused() {
    assert_eq!(merge(&[&"x".repeat(65_537)]).unwrap_err().code, Code::SpecTooLarge);
    let stages: Vec<String> = (0..600).map(|n| format!("stage_in source=/{n}/ destination=/{n}")).collect();
    let stages: Vec<&str> = stages.iter().map(String::as_str).collect();
    assert_eq!(merge(&stages).unwrap_err().code, Code::SpecTooLarge);
}

#[test]
fn capacity_per_node() {
    assert_eq!(spec(&["4TiB"]).bytes_per_node(4, 7), 1 << 40);
    assert_eq!(spec(&["1KB"]).bytes_per_node(3, 7), 334);
    assert_eq!(spec(&["per_node=1KB"]).bytes_per_node(3, 7), 1000);
    assert_eq!(spec(&["create"]).bytes_per_node(3, 7), 7);
    assert_eq!(spec(&["1KB"]).bytes_per_node(0, 7), 1000);
}

#[test]
fn echo() {
    let echoed = spec(&["4TiB stage_in=/lus/me/in/:/in stage_out=/out/:/lus/me/run-%j"]).echo();
    let expected = [
        "burstfs: capacity 4TiB = 4398046511104 bytes",
        "burstfs: stage_in /lus/me/in/ to /in",
        "burstfs: stage_out /out/ to /lus/me/run-%j",
    ];
    assert_eq!(echoed, expected);
}

#[test]
fn profiles_that_cannot_be_read() {
    let broken = |_: &str| {
        let failure = burstfs_types::Failure::new(Code::BadConfig, "/etc/burstfs/burstfs.toml: missing");
        Err(ProfileError::Unavailable(failure))
    };
    let mut accumulator = Accumulator::new();
    assert_eq!(accumulator.add("ckpt", &broken).unwrap_err().code, Code::BadConfig);
    assert!(accumulator.add("4TiB", &broken).is_ok());
}

#[test]
fn bytes_that_are_no_text() {
    let mut accumulator = Accumulator::new();
    let error = accumulator.add_bytes(b"4TiB name=\xff\xfe", &profiles).unwrap_err();
    assert_eq!(error.code, Code::BadSyntax);
    assert_eq!(error.place.unwrap().mark, 10..13);
}

#[test]
fn canonical_json_is_stable() {
    let json = spec(&["4TiB stage_in=/lus/me/in/:/in stage_out=/out/:/lus/run-%j"]).to_json().unwrap();
    let expected = concat!(
        r#"{"version":1,"create":{"capacity":{"total":4398046511104},"name":"job","mode":"shared","layout":"auto","#,
        r#""servers":"all","redundancy":"none","tolerate":0,"on_full":"enospc","requeue":"fresh","transport":"auto","tmpdir":"no","compat":"none"},"#,
        r#""stage_in":[{"source":"/lus/me/in/","destination":"/in","type":"auto","when":"before","on_error":"fail","#,
        r#""preserve":["mode","times","owner","acl","xattr","symlinks","hardlinks","sparse"],"verify":"checksum","#,
        r#""update":"changed"}],"#,
        r#""stage_out":[{"source":"/out/","destination":"/lus/run-%j","type":"auto","when":"end","deadline":"auto","on":"always","#,
        r#""on_error":"hold","preserve":["mode","times","owner","acl","xattr","symlinks","hardlinks","sparse"],"#,
        r#""verify":"checksum","atomic":"file","update":"changed","retain":86400}]}"#,
    );
    assert_eq!(json, expected);
}

#[test]
fn hostile_json() {
    let good = spec(&["4TiB stage_in=/lus/me/in/:/in stage_in=/b/:/b"]).to_json().unwrap();
    assert!(JobSpec::from_json(&good).is_ok());
    for (from, to) in [
        ("\"version\":1", "\"version\":2"),
        ("\"version\":1", "\"version\":1,\"version\":1"),
        ("\"version\":1,", ""),
        ("\"tolerate\":0", "\"tolerate\":1"),
        ("\"tolerate\":0", "\"tolerate\":0,\"sneaky\":1"),
        ("\"mode\":\"shared\"", "\"mode\":\"private\""),
        ("4398046511104", "0"),
        ("4398046511104", "-1"),
        ("\"name\":\"job\"", "\"name\":\"../x\""),
        ("\"destination\":\"/b\"", "\"destination\":\"/../b\""),
        ("\"destination\":\"/b\"", "\"destination\":\"/b\\u0000\""),
        ("\"destination\":\"/b\"", "\"destination\":\"/in/b\""),
        ("\"source\":\"/b/\"", "\"source\":\"b/\""),
        ("\"source\":\"/b/\"", "\"source\":\"/b/$PATH\""),
        ("\"source\":\"/b/\"", "\"source\":\"/b/[\""),
        ("\"destination\":\"/b\"", "\"destination\":\"/b*\""),
        ("\"type\":\"auto\"", "\"type\":\"list\""),
        ("\"update\":\"changed\"", "\"update\":\"changed\",\"list\":\"/f\""),
        ("\"update\":\"changed\"", "\"update\":\"changed\",\"bwlimit\":0"),
        ("\"update\":\"changed\"", "\"update\":\"changed\",\"filters\":[{\"action\":\"exclude\",\"pattern\":\"[\"}]"),
        ("\"update\":\"changed\"", "\"update\":\"changed\",\"filters\":[{\"action\":\"drop\",\"pattern\":\"x\"}]"),
        ("[\"mode\",", "[\"mode\",\"mode\","),
        ("\"stage_out\":[]", "\"stage_out\":[]}{"),
    ] {
        assert!(good.contains(from), "{from}");
        assert!(JobSpec::from_json(&good.replacen(from, to, 1)).is_err(), "{to}");
    }
    assert_eq!(JobSpec::from_json(&" ".repeat(65_537)).unwrap_err().code, Code::SpecTooLarge);
    assert!(JobSpec::from_json(&"[".repeat(60_000)).is_err());
}
