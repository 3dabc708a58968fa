//! A server of HTTP/1.1 that keeps what it was sent, byte for byte, with TLS or
//! without.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};

use crate::control_plane::certificates::Certificates;

/// The first byte of who wants to speak TLS.
const TLS: u8 = 0x16;

/// What came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    /// From 0, in the order of their coming.
    pub(crate) connection: usize,
    /// The request up to its body.
    pub(crate) head: String,
    /// The name that TLS was asked for.
    pub(crate) server_name: Option<String>,
}

impl Seen {
    /// The value of a header.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut headers = self.head.lines().filter_map(|line| line.split_once(": "));
        let header = headers.find(|(header, _)| header.eq_ignore_ascii_case(name));
        header.map(|(_, value)| value)
    }
}

/// How it answers.
#[derive(Clone, Debug)]
pub(crate) struct Answers {
    /// The whole answer to each request.
    pub(crate) text: String,
    /// Whether it hangs up after each.
    pub(crate) hangs_up: bool,
}

impl Answers {
    pub(crate) fn ok() -> Self {
        Self {
            text: "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}".into(),
            hangs_up: false,
        }
    }
}

/// Dropped, it is gone, with its connections.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    open: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Server {
    /// On a free port of this machine, or on the one that is named.
    pub(crate) async fn start(port: u16, tls: Option<ServerConfig>, answers: Answers) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::default();
        let open = Arc::new(AtomicUsize::new(0));
        let acceptor = tls.map(|tls| TlsAcceptor::from(Arc::new(tls)));
        let serve = serve(listener, acceptor, answers, Arc::clone(&seen), open.clone());
        let task = tokio::spawn(serve);
        Self {
            address,
            seen,
            open,
            task,
        }
    }

    /// How many connections there are.
    pub(crate) fn open(&self) -> usize {
        self.open.load(Ordering::SeqCst)
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    pub(crate) async fn stop(mut self) {
        self.task.abort();
        drop((&mut self.task).await);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(
    listener: TcpListener,
    acceptor: Option<TlsAcceptor>,
    answers: Answers,
    seen: Arc<Mutex<Vec<Seen>>>,
    open: Arc<AtomicUsize>,
) {
    let mut connections = JoinSet::new();
    for connection in 0.. {
        let (stream, _) = listener.accept().await.unwrap();
        let (acceptor, answers, seen) = (acceptor.clone(), answers.clone(), Arc::clone(&seen));
        let open = Arc::clone(&open);
        open.fetch_add(1, Ordering::SeqCst);
        connections.spawn(async move {
            talk(connection, stream, acceptor, &answers, &seen).await;
            open.fetch_sub(1, Ordering::SeqCst);
        });
    }
}

async fn talk(
    connection: usize,
    stream: TcpStream,
    acceptor: Option<TlsAcceptor>,
    answers: &Answers,
    seen: &Mutex<Vec<Seen>>,
) {
    let see = |head, server_name| {
        seen.lock().unwrap().push(Seen {
            connection,
            head,
            server_name,
        });
    };
    match acceptor {
        None => answer(stream, answers, |head| see(head, None)).await,
        Some(acceptor) => {
            // One that does not take our certificate hangs up.
            if let Ok(stream) = acceptor.accept(stream).await {
                let name = stream.get_ref().1.server_name().map(str::to_owned);
                answer(stream, answers, |head| see(head, name.clone())).await;
            }
        }
    }
}

async fn answer(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    answers: &Answers,
    see: impl Fn(String),
) {
    let mut head = String::new();
    while let Ok(byte) = stream.read_u8().await {
        if byte == TLS {
            let refused = b"HTTP/1.1 400 Bad Request\r\n\r\n";
            return drop(stream.write_all(refused).await);
        }
        head.push(char::from(byte));
        if head.ends_with("\r\n\r\n") {
            see(std::mem::take(&mut head));
            let written = stream.write_all(answers.text.as_bytes()).await;
            if written.is_err() || answers.hangs_up {
                break;
            }
        }
    }
    drop(stream.shutdown().await);
}

/// TLS with the certificate NAME.crt; clients may have to show one of the same
/// authority.
pub(crate) fn tls(certificates: &Certificates, name: &str, of_clients: bool) -> ServerConfig {
    let provider = Arc::new(ring::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider));
    let builder = builder.with_safe_default_protocol_versions().unwrap();
    let builder = if of_clients {
        let mut roots = RootCertStore::empty();
        for root in certificates_of(&certificates.file("ca.crt")) {
            roots.add(root).unwrap();
        }
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
        builder.with_client_cert_verifier(verifier.build().unwrap())
    } else {
        builder.with_no_client_auth()
    };
    let chain = certificates_of(&certificates.file(&format!("{name}.crt")));
    let key = PrivateKeyDer::from_pem_file(certificates.file(&format!("{name}.key"))).unwrap();
    builder.with_single_cert(chain, key).unwrap()
}

fn certificates_of(file: &Path) -> Vec<CertificateDer<'static>> {
    let certificates = CertificateDer::pem_file_iter(file).unwrap();
    certificates.collect::<Result<_, _>>().unwrap()
}
