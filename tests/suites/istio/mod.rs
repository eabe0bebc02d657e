//! Istio's certificate service, as istio-proxy and ztunnel use it.

mod impersonation;
mod service;
