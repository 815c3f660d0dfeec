#![no_main]

libfuzzer_sys::fuzz_target!(
    init: fuzz::begin("record", fuzz::record::seeds()),
    |data: &[u8]| fuzz::record::run(data)
);
