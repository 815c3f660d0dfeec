#![no_main]

libfuzzer_sys::fuzz_target!(
    init: fuzz::begin("frame", fuzz::frame::seeds()),
    |data: &[u8]| fuzz::frame::run(data)
);
