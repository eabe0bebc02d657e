//! Requests to the API server as its administrator.

use std::time::Duration;

use http::{Method, Request};
use kube::Client;
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde_json::Value;

use crate::reactor::on_harness;

/// The longest that a request of the harness may take.
const DEADLINE: Duration = Duration::from_secs(20);

/// What the API server answered instead of what was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiError {
    /// The HTTP status; 0 when there was no answer.
    pub code: u16,
    /// The message.
    pub message: String,
}

/// A client of the administrator.
#[derive(Clone)]
pub(super) struct Admin(Client);

impl Admin {
    pub(super) async fn connect(kubeconfig: &str) -> Self {
        let kubeconfig = Kubeconfig::from_yaml(kubeconfig).expect("a kubeconfig of ours");
        let client = on_harness(async move {
            let mut config =
                kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
                    .await
                    .expect("a kubeconfig of ours");
            // A stopped API server is to be seen as such, and at once.
            config.default_retry = false;
            Client::try_from(config).expect("a client")
        });
        Self(client.await)
    }

    pub(super) async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Value, ApiError> {
        let text = self.send_text(method, path, body).await?;
        Ok(serde_json::from_str(&text).expect("the API server answers in JSON"))
    }

    pub(super) async fn send_text(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<String, ApiError> {
        let media = if method == Method::PATCH {
            "application/merge-patch+json"
        } else {
            "application/json"
        };
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("content-type", media)
            .header("accept", "application/json, */*")
            .body(
                body.map(|body| body.to_string().into_bytes())
                    .unwrap_or_default(),
            )
            .expect("a request");
        let client = self.0.clone();
        on_harness(async move {
            match tokio::time::timeout(DEADLINE, client.request_text(request)).await {
                Ok(answer) => answer.map_err(ApiError::from),
                Err(_) => Err(ApiError {
                    code: 0,
                    message: format!("no answer within {DEADLINE:?}"),
                }),
            }
        })
        .await
    }
}

impl From<kube::Error> for ApiError {
    fn from(error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => Self {
                code: status.code,
                message: status.message,
            },
            other => Self {
                code: 0,
                message: other.to_string(),
            },
        }
    }
}
