//! A client that knows nothing but gRPC reflection, as grpcurl is one: it asks which services there are and for their
//! descriptors, and calls by these alone.

// Every test binary compiles its own copy of this module and uses a part of it.
#![allow(dead_code)]

use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor, Value};
use prost_types::FileDescriptorProto;
use tonic::Status;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::Channel;

pub struct Reflected {
    pub services: Vec<String>,
    descriptors: DescriptorPool,
    channel: Channel,
}

// The two versions of the protocol are two packages with the same messages.
macro_rules! by_version {
    ($name:ident, $version:ident) => {
        pub async fn $name(channel: Channel) -> Reflected {
            use tonic_reflection::pb::$version::ServerReflectionRequest;
            use tonic_reflection::pb::$version::server_reflection_client::ServerReflectionClient;
            use tonic_reflection::pb::$version::server_reflection_request::MessageRequest;
            use tonic_reflection::pb::$version::server_reflection_response::MessageResponse;

            let ask = async |question| {
                let request = ServerReflectionRequest { host: String::new(), message_request: Some(question) };
                let mut client = ServerReflectionClient::new(channel.clone());
                let answers = client.server_reflection_info(tokio_stream::once(request)).await;
                answers.unwrap().into_inner().message().await.unwrap().unwrap().message_response.unwrap()
            };
            let files = async |question| match ask(question).await {
                MessageResponse::FileDescriptorResponse(answer) => answer.file_descriptor_proto,
                other => panic!("no descriptors, but {other:?}"),
            };
            let services: Vec<String> = match ask(MessageRequest::ListServices(String::new())).await {
                MessageResponse::ListServicesResponse(list) => list.service.into_iter().map(|one| one.name).collect(),
                other => panic!("no services, but {other:?}"),
            };
            let mut questions: Vec<_> = services.iter().cloned().map(MessageRequest::FileContainingSymbol).collect();
            let mut known: Vec<FileDescriptorProto> = Vec::new();
            while let Some(question) = questions.pop() {
                for bytes in files(question).await {
                    let file = FileDescriptorProto::decode(&*bytes).unwrap();
                    if known.iter().all(|known| known.name() != file.name()) {
                        questions.extend(file.dependency.iter().cloned().map(MessageRequest::FileByFilename));
                        known.push(file);
                    }
                }
            }
            let mut descriptors = DescriptorPool::new();
            descriptors.add_file_descriptor_protos(known).unwrap();
            Reflected { services, descriptors, channel }
        }
    };
}

by_version!(by_v1, v1);
by_version!(by_v1alpha, v1alpha);

impl Reflected {
    /// Calls a unary method with these fields of its request set.
    pub async fn call<const N: usize>(
        &self,
        service: &str,
        method: &str,
        fields: [(&str, Value); N],
    ) -> Result<DynamicMessage, Status> {
        let descriptor = self.descriptors.get_service_by_name(service).unwrap();
        let descriptor = descriptor.methods().find(|candidate| candidate.name() == method).unwrap();
        let mut request = DynamicMessage::new(descriptor.input());
        for (name, value) in fields {
            request.set_field_by_name(name, value);
        }
        let mut client = tonic::client::Grpc::new(self.channel.clone());
        client.ready().await.unwrap();
        let path = format!("/{service}/{method}").parse().unwrap();
        client.unary(tonic::Request::new(request), path, Dynamic(descriptor.output())).await.map(|r| r.into_inner())
    }
}

/// Encodes any dynamic message, and decodes the one that is described.
#[derive(Clone)]
struct Dynamic(MessageDescriptor);

impl Codec for Dynamic {
    type Encode = DynamicMessage;
    type Decode = DynamicMessage;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        self.clone()
    }

    fn decoder(&mut self) -> Self {
        self.clone()
    }
}

impl Encoder for Dynamic {
    type Item = DynamicMessage;
    type Error = Status;

    fn encode(&mut self, message: DynamicMessage, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        message.encode(buffer).map_err(|error| Status::internal(error.to_string()))
    }
}

impl Decoder for Dynamic {
    type Item = DynamicMessage;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<DynamicMessage>, Status> {
        let message = DynamicMessage::decode(self.0.clone(), buffer);
        message.map(Some).map_err(|error| Status::internal(error.to_string()))
    }
}
