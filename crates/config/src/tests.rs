//! Files, good and bad.

use std::os::unix::fs::PermissionsExt;

use burstfs_spec::{Accumulator, Capacity};
use burstfs_types::Code;

use super::*;

fn parse(text: &str) -> Result<SiteConfig, ConfigError> {
    SiteConfig::parse(text, Path::new("burstfs.toml"))
}

#[test]
fn the_installed_file_shows_the_defaults() {
    let text = include_str!("../../../slurm-conf/burstfs.toml");
    assert_eq!(parse(text).unwrap(), SiteConfig::default());
    // Its examples are right as well.
    let examples: String = text
        .lines()
        .map(|line| match line.strip_prefix("# ") {
            Some(example) if example.starts_with('[') || example.contains(" = ") => format!("{example}\n"),
            _ => format!("{line}\n"),
        })
        .collect();
    let config = parse(&examples).unwrap();
    assert!(config.max_per_node.is_some() && config.profiles.len() >= 2);
    // Every key is in it.
    let shown = toml::to_string(&config).unwrap();
    for key in shown.lines().filter_map(|line| line.split_once(" = ")).map(|(key, _)| key) {
        assert!(text.contains(&format!("{key} = ")), "{key}");
    }
}

#[test]
fn an_empty_file_is_the_defaults_and_what_is_shown_is_read_again() {
    let config = parse("").unwrap();
    assert_eq!(config, SiteConfig::default());
    let text =
        "default_capacity = \"1.5TB\"\nmax_per_node = \"2TiB\"\n[profiles.ckpt]\nper_node = \"1T\"\ntolerate = 0";
    let config = parse(text).unwrap();
    assert_eq!(parse(&config.to_toml().unwrap()).unwrap(), config);
}

#[test]
fn errors_say_where_and_what() {
    for (text, expected) in [
        ("nvmee = \"/x\"", "burstfs.toml:1: nvmee: unknown key; did you mean \"nvme\"?"),
        ("\n[network]\nport = 1", "burstfs.toml:3: port: unknown key; known here are"),
        ("nvme = \"x\"", "burstfs.toml:1: nvme: \"x\" is not usable; write an absolute path"),
        ("nvme = \"/\"", "burstfs.toml:1: nvme: \"/\" is not usable"),
        ("nvme = \"/a/../b\"", "burstfs.toml:1: nvme: \"/a/../b\" is not usable"),
        ("nvme = 1", "burstfs.toml:1: nvme: invalid type"),
        ("default_capacity = \"10\"", "burstfs.toml:1: default_capacity: \"10\" has no unit"),
        ("\nmax_per_node = \"1GiB\"\ndefault_capacity = \"2GiB\"", "burstfs.toml:3: default_capacity: 2GiB is above"),
        ("[timeouts]\nstart = \"60\"", "burstfs.toml:2: start: \"60\" is no duration"),
        (
            "[metadata]\nsplit_shards = 1",
            "burstfs.toml:2: split_shards: a directory is spread over 2 to 256 nodes, not 1",
        ),
        ("[timeouts]\nstart = \"0s\"", "burstfs.toml:2: start: a time-out of nothing"),
        ("[network]\nmgs_port_base = 65500", "burstfs.toml:2: mgs_port_base: the ports must lie"),
        (
            "[network]\ninterfaces = [\"ib0\", \"ib/1\"]",
            "burstfs.toml:2: interfaces: \"ib/1\" is no name of a network interface",
        ),
        ("[network]\nrdma_connections = 0", "burstfs.toml:2: rdma_connections: one to 16 connections"),
        ("[network]\nmemory = \"31MiB\"", "burstfs.toml:2: memory: 31MiB is too little"),
        ("[network]\ntransport = \"ib\"", "burstfs.toml:2: transport: unknown variant `ib`"),
        ("[profiles.none]\nname = \"x\"", "burstfs.toml:1: no profile can be named \"none\""),
        ("[profiles.4x]\nname = \"x\"", "the profile's name \"4x\" must be"),
        ("[profiles.x]\nlayout = \"striped:count=0\"", "layout: \"0\" is no number of stripes"),
        ("[profiles.x]\ncapcity = \"1T\"", "did you mean \"capacity\"?"),
        ("[profiles.x]\ncapacity = \"1T\"\nper_node = \"1T\"", "exclude one another"),
        ("nvme = ", "burstfs.toml:1"),
        ("nvme = \"/a\"\nnvme = \"/b\"", "burstfs.toml:2: nvme: duplicate key"),
    ] {
        let error = parse(text).unwrap_err();
        let message = error.message();
        assert!(message.contains(expected), "{text:?}: {message}");
        assert!(!message.contains('\n'), "{message}");
        assert!(error.to_string().starts_with("E120: "));
    }
}

#[test]
fn profiles_are_used_by_directives() {
    let config = parse("[profiles.ckpt]\nper_node = \"100GiB\"\nlayout = \"local\"").unwrap();
    let mut accumulator = Accumulator::new();
    accumulator.add("ckpt name=x", &config).unwrap();
    let spec = accumulator.finish().unwrap().unwrap();
    assert!(matches!(spec.create.capacity, Some(Capacity::PerNode(size)) if size.bytes() == 100 << 30));
    assert_eq!(accumulator.add("cpkt", &config).unwrap_err().code, Code::UnknownProfile);
}

#[test]
fn files() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("burstfs.toml");
    let error = SiteConfig::load(&path).unwrap_err();
    assert!(error.message().contains("cannot be read"), "{error}");
    std::fs::write(&path, "nvme = \"/nvme\"").unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    if rustix::process::geteuid().is_root() {
        assert_eq!(SiteConfig::load(&path).unwrap().nvme, Path::new("/nvme"));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666)).unwrap();
        let error = SiteConfig::load(&path).unwrap_err();
        assert!(error.message().contains("can be written by everybody"), "{error}");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
        assert!(SiteConfig::load(&path).is_err());
    } else {
        assert!(SiteConfig::load(&path).is_ok());
    }
    std::fs::write(&path, " ".repeat(2 << 20)).unwrap();
    assert!(SiteConfig::load(&path).is_err());
}
