#![no_main]

libfuzzer_sys::fuzz_target!(
    init: fuzz::begin("chunk", fuzz::chunk::seeds()),
    |data: &[u8]| fuzz::chunk::run(data)
);
