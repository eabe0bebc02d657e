//! gRPC reflection of the Workload API (`spiffe_req_25`): for tools that know a service only
//! once they have asked it. Like every request it carries the security header
//! (`spiffe_req_22`).

use citadel_proto::workload::DESCRIPTORS;
use tonic::{
    Code, Request, Status,
    service::{Interceptor, interceptor::InterceptedService},
};
use tonic_reflection::server::{Builder, v1, v1alpha};

use super::check_header;
use crate::{connections::Caller, gate::refuse};

const RPC: &str = "ServerReflectionInfo";

/// The largest request, in bytes: the name of a symbol.
const MAX_REQUEST: usize = 4096;

/// The service; `None` where its descriptors are none, which a test rules out.
pub(crate) fn service()
-> Option<InterceptedService<v1::ServerReflectionServer<impl v1::ServerReflection>, Admit>> {
    let service = builder().build_v1().ok()?;
    let service = service.max_decoding_message_size(MAX_REQUEST);
    Some(InterceptedService::new(service, Admit))
}

/// The same under the name that older tools know.
pub(crate) fn service_v1alpha() -> Option<
    InterceptedService<v1alpha::ServerReflectionServer<impl v1alpha::ServerReflection>, Admit>,
> {
    let service = builder().build_v1alpha().ok()?;
    let service = service.max_decoding_message_size(MAX_REQUEST);
    Some(InterceptedService::new(service, Admit))
}

fn builder() -> Builder<'static> {
    Builder::configure().register_encoded_file_descriptor_set(DESCRIPTORS)
}

/// Lets in who was attested and sends the header.
#[derive(Clone)]
pub(crate) struct Admit;

impl Interceptor for Admit {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        check_header(request.metadata())?;
        let caller = request.extensions().get::<Caller>();
        let caller = caller.ok_or_else(|| Status::internal("the connection was not attested"))?;
        match caller.peer() {
            Ok(_) => Ok(request),
            Err(reason) => {
                let reason = reason.to_string();
                Err(refuse(Code::PermissionDenied, &reason, "unknown", RPC))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use prost::Message as _;
    use tonic::transport::Channel;
    use tonic_reflection::pb::v1::{
        ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
        server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
    };

    use super::*;
    use crate::testing_agent::{TestAgent, in_pod, soon};

    async fn ask(
        channel: Channel,
        what: MessageRequest,
        header: bool,
    ) -> Result<MessageResponse, Status> {
        let question = ServerReflectionRequest {
            host: String::new(),
            message_request: Some(what),
        };
        let mut request = Request::new(tokio_stream::iter([question]));
        if header {
            let metadata = request.metadata_mut();
            metadata.insert("workload.spiffe.io", "true".parse().unwrap());
        }
        let mut client = ServerReflectionClient::new(channel);
        let mut stream = client.server_reflection_info(request).await?.into_inner();
        let answer = soon(stream.message()).await?.expect("an answer");
        Ok(answer.message_response.unwrap())
    }

    #[tokio::test]
    async fn spiffe_req_25_a_tool_learns_the_service_from_its_endpoint() {
        let agent = TestAgent::new(&in_pod());
        let channel = agent.connect().await;
        let list = MessageRequest::ListServices(String::new());
        let MessageResponse::ListServicesResponse(listed) =
            ask(channel.clone(), list, true).await.unwrap()
        else {
            panic!("not a list")
        };
        assert!(
            listed
                .service
                .iter()
                .any(|it| it.name == "SpiffeWorkloadAPI")
        );
        let symbol = MessageRequest::FileContainingSymbol("SpiffeWorkloadAPI".into());
        let MessageResponse::FileDescriptorResponse(files) =
            ask(channel, symbol, true).await.unwrap()
        else {
            panic!("not a file")
        };
        let file = files.file_descriptor_proto[0].as_slice();
        let file = prost_types::FileDescriptorProto::decode(file).unwrap();
        let methods = file.service[0].method.iter().map(|it| it.name().to_owned());
        assert!(
            methods
                .collect::<Vec<_>>()
                .contains(&"FetchX509SVID".to_owned())
        );
    }

    #[tokio::test]
    async fn spiffe_req_22_reflection_wants_the_header_too() {
        let agent = TestAgent::new(&in_pod());
        let list = || MessageRequest::ListServices(String::new());
        let refused = ask(agent.connect().await, list(), false).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
        let nobody = TestAgent::new("0::/kubepods/podnonsense\n");
        let refused = ask(nobody.connect().await, list(), true).await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied);
    }
}
