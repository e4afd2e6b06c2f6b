//! Mutual TLS, with an authority made for each test.
#![expect(clippy::unwrap_used, reason = "helpers of tests may fail the test")]

#[expect(dead_code, reason = "shared with the other tests, which use more of it")]
mod common;

use std::{fs, path::Path, sync::Arc, sync::atomic::Ordering};

use cofactor_rpc::{
    ClientOptions, MutualTls, RpcServer, RpcTransport, Running, Security, SecurityError, ServerOptions,
};
use cofactor_types::{ErrorClass, SystemClock};
use cofactor_wire::node::Transport;
use common::{Scripted, client, client_with, echo, server, server_with};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use tempfile::TempDir;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

/// The name in the certificates of all nodes of a test.
const NODES: &str = "nodes.example.org";

/// An authority, and one node's certificate by it, for `name`.
fn issue(folder: &Path, name: &str) -> MutualTls {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, "authority of a test");
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(vec![name.to_owned()]).unwrap().signed_by(&key, &authority).unwrap();
    let write = |file: &str, pem: String| {
        let path = folder.join(file);
        fs::write(&path, pem).unwrap();
        path
    };
    MutualTls {
        ca: write("ca.pem", authority.pem()),
        certificate: write("node.pem", certificate.pem()),
        key: write("node.key", key.serialize_pem()),
        server_name: None,
    }
}

fn cluster() -> (TempDir, MutualTls) {
    let folder = tempfile::tempdir().unwrap();
    let tls = MutualTls { server_name: Some(NODES.to_owned()), ..issue(folder.path(), NODES) };
    (folder, tls)
}

async fn tls_server(tls: MutualTls) -> (Arc<Scripted>, Running, String) {
    server_with(ServerOptions::new("127.0.0.1:0", Security::MutualTls(tls))).await
}

fn tls_client(tls: MutualTls) -> RpcTransport {
    client_with(ClientOptions::new(Security::MutualTls(tls)))
}

#[tokio::test]
async fn nodes_with_certificates_of_one_authority_talk() {
    let (_folder, tls) = cluster();
    let (_scripted, _running, address) = tls_server(tls.clone()).await;
    assert_eq!(tls_client(tls).call(&address, echo("x")).await.unwrap(), "x");
}

#[tokio::test]
async fn without_a_common_name_the_host_called_must_be_in_the_certificate() {
    let folder = tempfile::tempdir().unwrap();
    let tls = issue(folder.path(), "127.0.0.1");
    let (_scripted, _running, address) = tls_server(tls.clone()).await;
    assert_eq!(tls_client(tls.clone()).call(&address, echo("x")).await.unwrap(), "x");
    let elsewhere = MutualTls { server_name: Some("other.example.org".to_owned()), ..tls };
    let fault = tls_client(elsewhere).call(&address, echo("x")).await.unwrap_err();
    assert_eq!(fault.class, ErrorClass::Unavailable, "{fault}");
}

#[tokio::test]
async fn a_caller_with_a_certificate_of_another_authority_is_refused() {
    let (folder, tls) = cluster();
    let (scripted, _running, address) = tls_server(tls.clone()).await;
    let (_foreign_folder, foreign) = cluster();
    // It trusts the server, but the server does not trust it.
    let stranger = MutualTls { ca: folder.path().join("ca.pem"), ..foreign.clone() };
    let fault = tls_client(stranger).call(&address, echo("x")).await.unwrap_err();
    assert!(matches!(fault.class, ErrorClass::Unavailable | ErrorClass::Unknown), "{fault}");
    // It does not trust the server, and so tells it nothing.
    let fault = tls_client(foreign).call(&address, echo("x")).await.unwrap_err();
    assert_eq!(fault.class, ErrorClass::Unavailable, "{fault}");
    assert_eq!(scripted.begun.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_caller_without_a_certificate_does_not_even_reach_the_health_service() {
    let (_folder, tls) = cluster();
    let (_scripted, _running, address) = tls_server(tls.clone()).await;
    let authority = Certificate::from_pem(fs::read(&tls.ca).unwrap());
    let config = ClientTlsConfig::new().ca_certificate(authority).domain_name(NODES);
    let endpoint = Endpoint::from_shared(format!("https://{address}")).unwrap().tls_config(config).unwrap();
    let mut health = HealthClient::new(endpoint.connect_lazy());
    health.check(HealthCheckRequest { service: String::new() }).await.unwrap_err();
}

#[tokio::test]
async fn a_caller_in_the_clear_is_refused_by_tls_and_the_other_way_round() {
    let (_folder, tls) = cluster();
    let (scripted, _running, address) = tls_server(tls.clone()).await;
    let fault = client().call(&address, echo("x")).await.unwrap_err();
    assert!(matches!(fault.class, ErrorClass::Unavailable | ErrorClass::Unknown), "{fault}");
    assert_eq!(scripted.begun.load(Ordering::SeqCst), 0);
    let (scripted, _running, address) = server().await;
    let fault = tls_client(tls).call(&address, echo("x")).await.unwrap_err();
    assert_eq!(fault.class, ErrorClass::Unavailable, "{fault}");
    assert_eq!(scripted.begun.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn files_that_are_missing_or_no_certificates_stop_the_start_with_their_names() {
    let (folder, tls) = cluster();
    let missing = MutualTls { key: folder.path().join("lost.key"), ..tls.clone() };
    let options = ServerOptions::new("127.0.0.1:0", Security::MutualTls(missing.clone()));
    let error = RpcServer::bind(options, Arc::new(Scripted::default())).await.unwrap_err();
    assert!(error.to_string().contains("lost.key"), "{error}");
    let error = RpcTransport::new(ClientOptions::new(Security::MutualTls(missing)), Arc::new(SystemClock)).unwrap_err();
    assert!(matches!(error, SecurityError::Unreadable { .. }), "{error}");

    fs::write(&tls.key, "no key").unwrap();
    let options = ServerOptions::new("127.0.0.1:0", Security::MutualTls(tls.clone()));
    let error = RpcServer::bind(options, Arc::new(Scripted::default())).await.unwrap_err();
    assert!(error.to_string().contains("cannot be used"), "{error}");
    let error = RpcTransport::new(ClientOptions::new(Security::MutualTls(tls)), Arc::new(SystemClock)).unwrap_err();
    assert!(matches!(error, SecurityError::Certificates(_)), "{error}");
}

#[tokio::test]
async fn the_private_key_is_not_in_debug_output() {
    let (_folder, tls) = cluster();
    let key = fs::read(&tls.key).unwrap();
    let text = format!("{:?}", tls_client(tls));
    let as_numbers = key[30..40].iter().map(u8::to_string).collect::<Vec<_>>().join(", ");
    assert!(!text.contains(&as_numbers) && !text.contains("PRIVATE KEY"), "{text}");
}
