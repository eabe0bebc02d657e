//! Kubeconfigs, and the rights of the CA's own service account.

use std::net::SocketAddr;
use std::path::PathBuf;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::Method;
use serde_json::{Value, json};

use super::{ApiError, ApiServer, TokenRequest};
use crate::dir::TestDir;

/// The `ConfigMap` that carries the CA's bundle.
const BUNDLE: &str = "citadel-bundle";

/// A service account of the CA, with no more rights than a deployment gives.
#[derive(Clone, Debug)]
pub struct Access {
    /// The kubeconfig file.
    pub kubeconfig: PathBuf,
    /// The account's namespace, where it may write the `ConfigMap` of its bundle.
    pub namespace: String,
    /// The account's name.
    pub account: String,
}

impl ApiServer {
    /// Makes the CA's account `citadel-ca` in `namespace` (which it makes too,
    /// unless it is there) and writes a kubeconfig for it into `dir`.
    pub async fn ca_access(&self, namespace: &str, dir: &TestDir) -> Access {
        let account = "citadel-ca";
        self.ensure_namespace(namespace).await;
        self.ensure_account(namespace, account).await;
        self.grant(namespace, account).await;
        let request = TokenRequest {
            // Without audiences, the token is for the API server itself.
            audiences: Vec::new(),
            seconds: 24 * 60 * 60,
            ..TokenRequest::unbound(namespace, account)
        };
        let token = self
            .request_token(&request)
            .await
            .expect("a token for the CA");
        let kubeconfig = dir.write("ca.kubeconfig", self.kubeconfig_for(&token));
        Access {
            kubeconfig,
            namespace: namespace.into(),
            account: account.into(),
        }
    }

    /// A kubeconfig whose user is whoever `token` names.
    pub fn kubeconfig_for(&self, token: &str) -> String {
        kubeconfig(self.address(), &self.root_pem, token)
    }

    async fn grant(&self, namespace: &str, account: &str) {
        let subjects =
            json!([{ "kind": "ServiceAccount", "namespace": namespace, "name": account }]);
        let rbac = "/apis/rbac.authorization.k8s.io/v1";
        let name = format!("citadel-ca-{namespace}");
        let everywhere = json!([
            { "apiGroups": [""], "resources": ["pods", "serviceaccounts", "nodes"], "verbs": ["get", "list", "watch"] },
            { "apiGroups": ["authentication.k8s.io"], "resources": ["tokenreviews"], "verbs": ["create"] },
            { "nonResourceURLs": ["/openid/v1/jwks", "/.well-known/openid-configuration"], "verbs": ["get"] },
        ]);
        let at_home = json!([
            // Server-side apply: a patch, that creates it where needed.
            { "apiGroups": [""], "resources": ["configmaps"], "resourceNames": [BUNDLE], "verbs": ["create", "get", "patch"] },
        ]);
        let home = format!("{rbac}/namespaces/{namespace}");
        for (path, object) in [
            (format!("{rbac}/clusterroles"), role(&name, &everywhere)),
            (
                format!("{rbac}/clusterrolebindings"),
                binding(&name, "ClusterRole", &subjects),
            ),
            (format!("{home}/roles"), role(&name, &at_home)),
            (
                format!("{home}/rolebindings"),
                binding(&name, "Role", &subjects),
            ),
        ] {
            self.ensure(&path, &object).await;
        }
    }

    /// Makes an object unless there is one of its name. Tests that run side by
    /// side ask for the same.
    pub(super) async fn ensure(&self, path: &str, object: &Value) {
        match self.request(Method::POST, path, Some(object)).await {
            Ok(_) | Err(ApiError { code: 409, .. }) => {}
            Err(e) => panic!("POST {path}: {e:?}"),
        }
    }

    pub(super) async fn post(&self, path: &str, object: &Value) -> Value {
        let answer = self.request(Method::POST, path, Some(object)).await;
        answer.unwrap_or_else(|e| panic!("POST {path}: {e:?}"))
    }
}

fn role(name: &str, rules: &Value) -> Value {
    json!({ "metadata": { "name": name }, "rules": rules })
}

fn binding(name: &str, kind: &str, subjects: &Value) -> Value {
    json!({
        "metadata": { "name": name },
        "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": name },
        "subjects": subjects,
    })
}

/// A kubeconfig file's text, for who has this token.
pub(super) fn kubeconfig(address: SocketAddr, root_pem: &str, token: &str) -> String {
    kubeconfig_of(address, root_pem, &json!({ "token": token }))
}

/// A kubeconfig's user with a client certificate.
pub(super) fn certificate_user(certificate: &str, key: &str) -> Value {
    json!({
        "client-certificate-data": STANDARD.encode(certificate),
        "client-key-data": STANDARD.encode(key),
    })
}

/// A kubeconfig file's text. JSON is YAML too.
pub(super) fn kubeconfig_of(address: SocketAddr, root_pem: &str, user: &Value) -> String {
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "test",
        "contexts": [{ "name": "test", "context": { "cluster": "test", "user": "test" } }],
        "users": [{ "name": "test", "user": user }],
        "clusters": [{ "name": "test", "cluster": {
            "server": format!("https://{address}"),
            "certificate-authority-data": STANDARD.encode(root_pem),
        } }],
    })
    .to_string()
}
