#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| burstfs_testkit::decoding::replies(bytes));
