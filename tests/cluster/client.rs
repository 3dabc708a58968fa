//! How the API server is reached, and as whom.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use gpu_device_plugin::cluster::ClusterError;
use gpu_device_plugin::cluster::client::Client;
use http::Request;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::timeout;

use crate::common::system::{on_path, skip};
use crate::common::wait::{LONG, eventually};
use crate::control_plane::certificates::Certificates;
use crate::server::{Answers, Server, tls};

const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// A folder for certificates and kubeconfigs.
struct Rig {
    folder: TempDir,
}

impl Rig {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self { folder }
    }

    /// An authority with a server's certificate.
    fn certificates(&self, name: &str, addresses: &[IpAddr]) -> Certificates {
        let certificates = Certificates::make(&self.folder.path().join(name));
        certificates.server("server", "/CN=server", addresses);
        certificates
    }

    fn kubeconfig(&self, cluster: &Value, user: &Value) -> PathBuf {
        let file = self.folder.path().join("kubeconfig");
        let kubeconfig = json!({
            "current-context": "test",
            "clusters": [{ "name": "test", "cluster": cluster }],
            "users": [{ "name": "test", "user": user }],
            "contexts": [{ "name": "test", "context": { "cluster": "test", "user": "test" } }],
        });
        fs::write(&file, kubeconfig.to_string()).unwrap();
        file
    }

    fn client(&self, cluster: &Value, user: &Value) -> Client {
        Client::by_kubeconfig(&self.kubeconfig(cluster, user)).unwrap()
    }

    fn write(&self, file: &str, content: impl AsRef<[u8]>) {
        fs::write(self.folder.path().join(file), content).unwrap();
    }
}

/// Whether this test has to go without certificates.
fn no_openssl(test: &str) -> bool {
    let missing = on_path("openssl").is_none();
    if missing {
        skip(test, "no openssl on PATH");
    }
    missing
}

fn url(server: &Server) -> String {
    format!("https://127.0.0.1:{}", server.address.port())
}

async fn ask(client: &Client) -> Result<u16, ClusterError> {
    let request = Request::get("/version").body(Vec::new()).unwrap();
    let answer = timeout(LONG, client.send(request)).await.unwrap()?;
    Ok(answer.status().as_u16())
}

async fn refusal(client: &Client) -> String {
    let error = ask(client).await.unwrap_err();
    assert!(matches!(error, ClusterError::Unreachable(_)), "{error:?}");
    error.to_string()
}

// === Whom to take for the API server ===

#[tokio::test]
async fn only_who_has_a_certificate_of_the_authority_is_asked() {
    if no_openssl("a server of another authority") {
        return;
    }
    let rig = Rig::new();
    let ours = rig.certificates("ours", &[LOCALHOST]);
    let others = rig.certificates("others", &[LOCALHOST]);
    let server = Server::start(0, Some(tls(&ours, "server", false)), Answers::ok()).await;
    let user = json!({ "token": "secret" });
    let cluster =
        |authority: &Path| json!({ "server": url(&server), "certificate-authority": authority });
    let client = rig.client(&cluster(&ours.file("ca.crt")), &user);
    assert_eq!(ask(&client).await, Ok(200));
    let seen = server.seen();
    let port = server.address.port();
    assert_eq!(seen[0].header("authorization"), Some("Bearer secret"));
    assert_eq!(seen[0].header("host"), Some(&*format!("127.0.0.1:{port}")));
    assert_eq!(seen[0].server_name, None, "an address is no name");
    let client = rig.client(&cluster(&others.file("ca.crt")), &user);
    let error = refusal(&client).await;
    assert!(error.contains("no TLS with 127.0.0.1: "), "{error}");
    assert!(error.contains("invalid peer certificate"), "{error}");
    let anybody = json!({ "server": url(&server), "insecure-skip-tls-verify": true });
    assert_eq!(ask(&rig.client(&anybody, &user)).await, Ok(200));
    assert_eq!(server.seen().len(), 2);
}

#[tokio::test]
async fn the_certificate_has_to_be_for_the_name() {
    if no_openssl("a server of another name") {
        return;
    }
    let rig = Rig::new();
    let certificates = rig.certificates("ours", &[]);
    let server = Server::start(0, Some(tls(&certificates, "server", false)), Answers::ok()).await;
    let authority = fs::read(certificates.file("ca.crt")).unwrap();
    let mut cluster = json!({
        "server": url(&server),
        "certificate-authority-data": base64_of(&authority),
    });
    let error = refusal(&rig.client(&cluster, &json!({}))).await;
    assert!(error.contains("not valid for name"), "{error}");
    cluster["tls-server-name"] = "localhost".into();
    assert_eq!(ask(&rig.client(&cluster, &json!({}))).await, Ok(200));
    assert_eq!(server.seen()[0].server_name.as_deref(), Some("localhost"));
}

fn base64_of(bytes: &[u8]) -> String {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

#[tokio::test]
async fn plain_http_where_tls_is_wanted_is_named() {
    let rig = Rig::new();
    let server = Server::start(0, None, Answers::ok()).await;
    let cluster = json!({ "server": url(&server), "insecure-skip-tls-verify": true });
    let error = refusal(&rig.client(&cluster, &json!({ "token": "secret" }))).await;
    assert!(error.contains("no TLS with 127.0.0.1: "), "{error}");
    assert_eq!(server.seen(), []);
}

// === As whom ===

#[tokio::test]
async fn a_client_shows_its_certificate_whatever_its_key() {
    if no_openssl("a client with a certificate") {
        return;
    }
    let rig = Rig::new();
    let certificates = rig.certificates("ours", &[LOCALHOST]);
    let server = Server::start(0, Some(tls(&certificates, "server", true)), Answers::ok()).await;
    let cluster = json!({
        "server": url(&server), "certificate-authority": certificates.file("ca.crt"),
    });
    let user = |name: &str| {
        json!({ "client-certificate": format!("ours/{name}.crt"),
                "client-key": format!("ours/{name}.key") })
    };
    for (name, key) in [
        ("sec1", "ecparam -name prime256v1 -genkey"),
        (
            "p384",
            "genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-384",
        ),
        (
            "rsa",
            "genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048",
        ),
        ("ed25519", "genpkey -algorithm ed25519"),
    ] {
        certificates.client_with(name, "/CN=me", key);
        let client = rig.client(&cluster, &user(name));
        assert_eq!(ask(&client).await, Ok(200), "{name}");
    }
    let data = |file: &str| base64_of(&fs::read(certificates.file(file)).unwrap());
    let inline = json!({
        "client-certificate-data": data("rsa.crt"), "client-key-data": data("rsa.key"),
    });
    assert_eq!(ask(&rig.client(&cluster, &inline)).await, Ok(200));
    let without = refusal(&rig.client(&cluster, &json!({}))).await;
    assert!(without.contains("ertificateRequired"), "{without}");
    let mut mixed = user("rsa");
    mixed["client-key"] = "ours/p384.key".into();
    let file = rig.kubeconfig(&cluster, &mixed);
    let error = Client::by_kubeconfig(&file).unwrap_err().to_string();
    assert!(error.contains("client-key: "), "{error}");
    assert!(
        error.contains("is not the key of the certificate"),
        "{error}"
    );
}

/// As the kubelet renews its own, in the file that its kubeconfig names.
#[tokio::test]
async fn a_certificate_that_was_renewed_is_shown_with_the_next_connection() {
    if no_openssl("a client whose certificate is renewed") {
        return;
    }
    let rig = Rig::new();
    let certificates = rig.certificates("ours", &[LOCALHOST]);
    let others = rig.certificates("others", &[LOCALHOST]);
    certificates.client("me", "/CN=me");
    others.client("me", "/CN=me");
    let both = |certificates: &Certificates| {
        let read = |file: &str| fs::read_to_string(certificates.file(file)).unwrap();
        read("me.crt") + &read("me.key")
    };
    let hangs_up = Answers {
        hangs_up: true,
        ..Answers::ok()
    };
    let server = Server::start(0, Some(tls(&certificates, "server", true)), hangs_up).await;
    let cluster = json!({
        "server": url(&server), "certificate-authority": certificates.file("ca.crt"),
    });
    rig.write("current.pem", both(&others));
    let user = json!({ "client-certificate": "current.pem", "client-key": "current.pem" });
    let client = rig.client(&cluster, &user);
    refusal(&client).await;
    rig.write("current.pem", both(&certificates));
    assert_eq!(ask(&client).await, Ok(200));
    rig.write("current.pem", "half");
    assert_eq!(ask(&client).await, Ok(200), "the last good one stays");
}

#[tokio::test]
async fn a_service_account_is_read_anew() {
    if no_openssl("a service account whose token and authority change") {
        return;
    }
    let rig = Rig::new();
    let (old, new) = (
        rig.certificates("old", &[LOCALHOST]),
        rig.certificates("new", &[LOCALHOST]),
    );
    let server = Server::start(0, Some(tls(&old, "server", false)), Answers::ok()).await;
    let port = server.address.port();
    rig.write("token", "one\n");
    rig.write("ca.crt", fs::read(old.file("ca.crt")).unwrap());
    let client = Client::by_service_account(rig.folder.path(), |name| match name {
        "KUBERNETES_SERVICE_HOST" => Some("127.0.0.1".into()),
        "KUBERNETES_SERVICE_PORT" => Some(port.to_string().into()),
        _ => None,
    });
    let client = client.unwrap();
    assert_eq!(ask(&client).await, Ok(200));
    rig.write("token", "two\n");
    assert_eq!(ask(&client).await, Ok(200));
    let seen = server.seen();
    let tokens: Vec<_> = seen
        .iter()
        .map(|seen| seen.header("authorization"))
        .collect();
    assert_eq!(tokens, [Some("Bearer one"), Some("Bearer two")]);
    server.stop().await;
    let server = Server::start(port, Some(tls(&new, "server", false)), Answers::ok()).await;
    assert!(refusal(&client).await.contains("invalid peer certificate"));
    fs::remove_file(rig.folder.path().join("ca.crt")).unwrap();
    let error = refusal(&client).await;
    assert!(error.contains("besides, "), "{error}");
    assert!(error.contains("ca.crt cannot be read"), "{error}");
    rig.write("ca.crt", fs::read(new.file("ca.crt")).unwrap());
    assert_eq!(ask(&client).await, Ok(200));
    assert_eq!(server.seen().len(), 1);
}

// === Connections ===

#[tokio::test]
async fn requests_share_a_connection() {
    let rig = Rig::new();
    let server = Server::start(0, None, Answers::ok()).await;
    let url = format!("http://{}/prefix/", server.address);
    let client = rig.client(&json!({ "server": url }), &json!({}));
    for _ in 0..20 {
        assert_eq!(ask(&client).await, Ok(200));
    }
    let seen = server.seen();
    assert_eq!(seen.len(), 20);
    assert!(seen.iter().all(|seen| seen.connection == 0), "{seen:?}");
    assert!(seen[0].head.starts_with("GET /prefix/version HTTP/1.1\r\n"));
    assert_eq!(seen[0].header("authorization"), None);
}

#[tokio::test]
async fn a_server_that_hangs_up_is_asked_over_a_new_connection() {
    let rig = Rig::new();
    let hangs_up = Answers {
        hangs_up: true,
        ..Answers::ok()
    };
    let server = Server::start(0, None, hangs_up).await;
    let cluster = json!({ "server": format!("http://{}", server.address) });
    let client = rig.client(&cluster, &json!({}));
    for _ in 0..20 {
        assert_eq!(ask(&client).await, Ok(200));
    }
    let seen = server.seen();
    assert_eq!(seen.len(), 20, "each was sent once");
    let connections: Vec<_> = seen.iter().map(|seen| seen.connection).collect();
    assert_eq!(connections, (0..20).collect::<Vec<_>>());
}

#[tokio::test]
async fn who_has_nothing_to_ask_holds_no_connection() {
    let rig = Rig::new();
    let server = Server::start(0, None, Answers::ok()).await;
    let cluster = json!({ "server": format!("http://{}", server.address) });
    let client = rig.client(&cluster, &json!({}));
    for connection in 0..2 {
        assert_eq!(ask(&client).await, Ok(200));
        assert_eq!(server.open(), 1);
        assert_eq!(server.seen()[connection].connection, connection);
        tokio::time::pause();
        tokio::time::sleep(Duration::from_secs(150)).await;
        tokio::time::resume();
        eventually("the connection is closed", async || match server.open() {
            0 => Ok(()),
            open => Err(open),
        })
        .await;
    }
}

#[tokio::test]
async fn a_redirection_is_an_answer() {
    let rig = Rig::new();
    let other = Server::start(0, None, Answers::ok()).await;
    let redirects = Answers {
        text: format!(
            "HTTP/1.1 302 Found\r\nlocation: http://{}/\r\ncontent-length: 0\r\n\r\n",
            other.address
        ),
        hangs_up: false,
    };
    let server = Server::start(0, None, redirects).await;
    let cluster = json!({ "server": format!("http://{}", server.address) });
    let client = rig.client(&cluster, &json!({ "token": "secret" }));
    assert_eq!(ask(&client).await, Ok(302));
    assert_eq!(other.seen(), []);
}

#[tokio::test]
async fn an_answer_without_end_is_given_up() {
    let rig = Rig::new();
    let head = "HTTP/1.1 200 OK\r\ncontent-length: 5000000\r\n\r\n";
    let endless = Answers {
        text: head.to_owned() + &"x".repeat(5_000_000),
        hangs_up: false,
    };
    let server = Server::start(0, None, endless).await;
    let cluster = json!({ "server": format!("http://{}", server.address) });
    let error = ask(&rig.client(&cluster, &json!({}))).await.unwrap_err();
    assert!(matches!(error, ClusterError::Unreadable(_)), "{error:?}");
}

#[tokio::test]
async fn who_is_not_there_is_named() {
    let rig = Rig::new();
    let server = Server::start(0, None, Answers::ok()).await;
    let address = server.address;
    server.stop().await;
    let cluster = json!({ "server": format!("http://{address}") });
    let error = refusal(&rig.client(&cluster, &json!({}))).await;
    let words = format!("cannot connect to {address}: Connection refused");
    assert!(error.contains(&words), "{error}");
    let cluster = json!({ "server": "http://nowhere.invalid" });
    let error = refusal(&rig.client(&cluster, &json!({}))).await;
    assert!(
        error.contains("nowhere.invalid has no address: "),
        "{error}"
    );
}

#[test]
fn nothing_of_a_secret_is_printed() {
    let rig = Rig::new();
    let cluster = json!({ "server": "http://localhost" });
    let client = rig.client(&cluster, &json!({ "token": "secret" }));
    assert_eq!(format!("{client:?}"), "Client { .. }");
}
