#![no_main]

libfuzzer_sys::fuzz_target!(
    init: fuzz::begin("catalog", fuzz::catalog::seeds()),
    |data: &[u8]| fuzz::catalog::run(data)
);
