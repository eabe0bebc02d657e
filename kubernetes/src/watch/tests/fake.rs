//! An API server in this process and without sockets, so that time can be held.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use futures::StreamExt;
use futures::channel::mpsc;
use futures::future::pending;
use http::{Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Bytes, Frame};
use kube::client::Body;
use serde_json::{Value, json};
use tokio::sync::watch;

pub(super) type FakeBody = UnsyncBoxBody<Bytes, Infallible>;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Health {
    Up,
    /// Takes requests and says nothing, as under SIGSTOP.
    Hung,
    /// Answers 503.
    Failing,
}

pub(super) struct Server {
    pub(super) health: Health,
    pub(super) objects: HashMap<&'static str, Vec<Value>>,
    /// Objects in a page, at most.
    pub(super) page: usize,
    pub(super) version: u64,
    /// Watches from older versions are expired (410).
    pub(super) oldest: u64,
    pub(super) watches: Vec<(String, mpsc::UnboundedSender<Bytes>)>,
    pub(super) requests: Vec<String>,
}

#[derive(Clone)]
pub(super) struct Fake {
    pub(super) server: Arc<Mutex<Server>>,
    requested: watch::Sender<()>,
}

pub(super) const RESOURCES: [&str; 3] =
    ["/api/v1/pods", "/api/v1/serviceaccounts", "/api/v1/nodes"];

pub(super) fn object(uid: &str) -> Value {
    json!({
        "metadata": {"uid": uid, "name": uid, "namespace": "shop", "resourceVersion": "1"},
        "spec": {"nodeName": "n1", "serviceAccountName": "web"},
        "status": {"phase": "Running"},
    })
}

impl Fake {
    pub(super) fn new() -> Self {
        let server = Server {
            health: Health::Up,
            objects: RESOURCES.into_iter().map(|r| (r, Vec::new())).collect(),
            page: 2,
            version: 100,
            oldest: 0,
            watches: Vec::new(),
            requests: Vec::new(),
        };
        Self {
            server: Arc::new(Mutex::new(server)),
            requested: watch::Sender::new(()),
        }
    }

    pub(super) fn with<T>(&self, change: impl FnOnce(&mut Server) -> T) -> T {
        change(&mut self.server.lock().unwrap())
    }

    pub(super) fn set_pods(&self, uids: &[&str]) {
        let pods = uids.iter().map(|uid| object(uid)).collect();
        self.with(|server| server.objects.insert("/api/v1/pods", pods));
    }

    /// Sends an event to the watches of pods.
    pub(super) fn send(&self, kind: &str, mut object: Value) {
        self.with(|server| {
            server.version += 1;
            if kind != "ERROR" {
                object["metadata"]["resourceVersion"] = json!(server.version.to_string());
            }
        });
        self.send_raw(&json!({"type": kind, "object": object}).to_string());
    }

    pub(super) fn send_raw(&self, line: &str) {
        self.with(|server| {
            for (path, sender) in &server.watches {
                if path == "/api/v1/pods" {
                    // A watch that was given up is closed at its other end.
                    drop(sender.unbounded_send(Bytes::from(format!("{line}\n"))));
                }
            }
        });
    }

    pub(super) fn bookmark_all(&self) {
        self.with(|server| {
            server.version += 1;
            let object = json!({"metadata": {"resourceVersion": server.version.to_string()}});
            let line = format!("{}\n", json!({"type": "BOOKMARK", "object": object}));
            server
                .watches
                .retain(|(_, s)| s.unbounded_send(Bytes::from(line.clone())).is_ok());
        });
    }

    /// Ends all watches as the API server does after a while.
    pub(super) fn close_watches(&self) {
        self.with(|server| server.watches.clear());
    }

    pub(super) fn count(&self, what: impl Fn(&str) -> bool) -> usize {
        self.with(|server| server.requests.iter().filter(|r| what(r)).count())
    }

    pub(super) fn pod_lists(&self) -> usize {
        self.count(|r| r.starts_with("/api/v1/pods?limit") && r.ends_with("continue="))
    }

    pub(super) fn pod_watches(&self) -> usize {
        self.count(|r| r.starts_with("/api/v1/pods?watch"))
    }

    pub(super) async fn until(&self, what: impl Fn(&Self) -> bool) {
        let mut requested = self.requested.subscribe();
        while !what(self) {
            requested.changed().await.unwrap();
        }
    }

    pub(super) async fn answer(&self, request: Request<Body>) -> Response<FakeBody> {
        let (path, query) = (
            request.uri().path().to_string(),
            request.uri().query().unwrap_or(""),
        );
        let health = self.with(|server| {
            server.requests.push(request.uri().to_string());
            server.health
        });
        self.requested.send_replace(());
        match health {
            Health::Up => {}
            Health::Hung => pending().await,
            Health::Failing => return answer(StatusCode::SERVICE_UNAVAILABLE, &json!({})),
        }
        if path == "/readyz" {
            return answer(StatusCode::OK, &json!("ok"));
        }
        let query: HashMap<_, _> = query.split('&').filter_map(|p| p.split_once('=')).collect();
        if query.contains_key("watch") {
            assert_eq!(query["allowWatchBookmarks"], "true");
            return self.watch(&path, query["resourceVersion"].parse().unwrap());
        }
        self.list(&path, query["continue"])
    }

    pub(super) fn list(&self, path: &str, from: &str) -> Response<FakeBody> {
        self.with(|server| {
            let objects = &server.objects[path];
            let from: usize = from.strip_prefix("at%2B").map_or(0, |n| n.parse().unwrap());
            let to = (from + server.page).min(objects.len());
            let next = if to < objects.len() {
                format!("at+{to}")
            } else {
                String::new()
            };
            let metadata = json!({"resourceVersion": server.version.to_string(), "continue": next});
            answer(
                StatusCode::OK,
                &json!({"metadata": metadata, "items": objects[from..to]}),
            )
        })
    }

    pub(super) fn watch(&self, path: &str, version: u64) -> Response<FakeBody> {
        let (sender, receiver) = mpsc::unbounded();
        let expired = self.with(|server| {
            server.watches.push((path.to_string(), sender));
            version < server.oldest
        });
        if expired {
            return answer(StatusCode::GONE, &json!({"kind": "Status", "code": 410}));
        }
        let frames = receiver.map(|bytes| Ok::<_, Infallible>(Frame::data(bytes)));
        Response::new(wrap(StreamBody::new(frames)))
    }
}

pub(super) fn answer(status: StatusCode, body: &Value) -> Response<FakeBody> {
    let body = wrap(Full::new(Bytes::from(body.to_string())));
    Response::builder().status(status).body(body).unwrap()
}

pub(super) fn wrap<B>(body: B) -> FakeBody
where
    B: hyper::body::Body<Data = Bytes, Error = Infallible> + Send + 'static,
{
    body.boxed_unsync()
}
