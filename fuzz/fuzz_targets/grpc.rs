#![no_main]

libfuzzer_sys::fuzz_target!(
    init: fuzz::begin("grpc", fuzz::grpc::seeds()),
    |data: &[u8]| fuzz::grpc::run(data)
);
