//! Makes clients and servers of the gRPC services in `proto/` from the descriptions below, which takes no `protoc`.

use tonic_build::manual::{Builder, Method, Service};

const CODEC: &str = "tonic_prost::ProstCodec";

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let words = |name: &str, route: &str| {
        Method::builder()
            .name(name)
            .route_name(route)
            .input_type("super::Words")
            .output_type("super::Words")
            .codec_path(CODEC)
    };
    let talk = Service::builder()
        .name("Talk")
        .package("sluice.test")
        .method(words("say", "Say").build())
        .method(words("gather", "Gather").client_streaming().build())
        .method(words("repeat", "Repeat").server_streaming().build())
        .method(words("chat", "Chat").client_streaming().server_streaming().build())
        .build();
    let sum = Method::builder()
        .name("sum")
        .route_name("Sum")
        .input_type("super::Summands")
        .output_type("super::Total")
        .codec_path(CODEC)
        .build();
    let adder = Service::builder().name("Adder").package("sluice.demo").method(sum).build();
    Builder::new().compile(&[talk, adder]);
}
