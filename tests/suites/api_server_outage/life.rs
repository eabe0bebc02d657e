//! The life of a cluster: something changes all the time, so that each watch
//! has its events. A quiet cluster has nothing but a bookmark a minute.

use std::sync::Arc;
use std::time::Duration;

use citadel_tests::kubernetes::ApiServer;
use http::Method;
use serde_json::json;
use tokio::task::JoinHandle;

/// Between two changes of each kind.
pub(crate) const BEAT: Duration = Duration::from_millis(500);

/// A pod, an account and a node that change twice a second. Dropping it ends it.
pub(crate) struct Life(JoinHandle<()>);

impl Life {
    /// Begins it. What the API server does not answer is left out.
    pub(crate) async fn of(api: &Arc<ApiServer>) -> Self {
        if api
            .request(Method::GET, "/api/v1/nodes/pulse", None)
            .await
            .is_err()
        {
            api.create_node("pulse").await;
            api.create_workload("pulse", "pulse", "pulse", "pulse")
                .await;
        }
        let api = api.clone();
        Self(tokio::spawn(async move {
            for beat in 0.. {
                let label = json!({ "metadata": { "labels": { "beat": beat.to_string() } } });
                let patch = |path| api.request(Method::PATCH, path, Some(&label));
                let _ = tokio::join!(
                    patch("/api/v1/nodes/pulse"),
                    patch("/api/v1/namespaces/pulse/pods/pulse"),
                    patch("/api/v1/namespaces/pulse/serviceaccounts/pulse"),
                    tokio::time::sleep(BEAT),
                );
            }
        }))
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        self.0.abort();
    }
}
