#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| growd::fuzz::superblock(data));
