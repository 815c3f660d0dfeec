#![no_main]

libfuzzer_sys::fuzz_target!(
    init: fuzz::begin("ids", fuzz::ids::seeds()),
    |data: &[u8]| fuzz::ids::run(data)
);
