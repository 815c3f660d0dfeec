#![no_main]

libfuzzer_sys::fuzz_target!(
    init: fuzz::begin("body", fuzz::body::seeds()),
    |data: &[u8]| fuzz::body::run(data)
);
