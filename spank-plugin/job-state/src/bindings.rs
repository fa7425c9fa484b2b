//! Made by bindgen from `slurm/slurm.h`.

#![allow(
    missing_docs,
    non_camel_case_types,
    non_snake_case,
    non_upper_case_globals,
    dead_code,
    unreachable_pub,
    clippy::all,
    clippy::undocumented_unsafe_blocks,
    reason = "C's names, and all of a header whose part is used"
)]

include!(concat!(env!("OUT_DIR"), "/slurm.rs"));
