//! Whom to take for the API server, and the certificate that is shown to it.

use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::client::Resumption;
use tokio_rustls::rustls::client::danger::{
    HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier,
};
use tokio_rustls::rustls::crypto::{
    CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature,
};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio_rustls::rustls::{
    ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
};

use crate::cluster::text::chain;
use crate::config::file::{self, Fault, LARGEST, Place};

/// The authorities that a distribution trusts, where it keeps them in one file:
/// Debian and Alpine, Fedora, openSUSE, and the others.
const SYSTEM: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// Something in PEM.
pub(super) struct Source {
    /// Where it was said, for people.
    pub(super) place: Place,
    pub(super) pem: Pem,
}

pub(super) enum Pem {
    File(PathBuf),
    Data(Vec<u8>),
}

/// Whose word is taken for the server's certificate.
pub(super) enum Trust {
    /// The kubeconfig's user wants it so.
    Anybodys,
    /// The machine's; the place is that of who says nothing else.
    Systems(Place),
    Of(Source),
}

/// A client's certificate and its key.
pub(super) struct Identity {
    pub(super) certificate: Source,
    pub(super) key: Source,
}

/// How connections are made. Files are read anew for each: they are few, and
/// authorities and certificates change in a cluster that lives for years.
pub(super) struct Tls {
    name: ServerName<'static>,
    trust: Trust,
    identity: Option<Identity>,
    last: Mutex<Arc<ClientConfig>>,
}

impl Tls {
    /// All of it has to be good now. `name` is what the server's certificate
    /// has to be for.
    pub(super) fn new(
        name: ServerName<'static>,
        trust: Trust,
        identity: Option<Identity>,
    ) -> Result<Self, Fault> {
        let last = Mutex::new(Arc::new(config(&trust, identity.as_ref())?));
        Ok(Self {
            name,
            trust,
            identity,
            last,
        })
    }

    /// Says in words what goes wrong, and of which server.
    pub(super) async fn shake_hands(
        &self,
        stream: TcpStream,
    ) -> Result<TlsStream<TcpStream>, String> {
        let (config, stale) = self.config();
        let shaken = TlsConnector::from(config).connect(self.name.clone(), stream);
        shaken.await.map_err(|error| {
            let (name, error) = (self.name.to_str(), chain(&error));
            let stale =
                stale.map_or_else(String::new, |fault| format!("; besides, {}", fault.what));
            format!("no TLS with {name}: {error}{stale}")
        })
    }

    /// By the files as they are now, or as they were last good and what is wrong
    /// with them since.
    fn config(&self) -> (Arc<ClientConfig>, Option<Fault>) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let fault = match config(&self.trust, self.identity.as_ref()) {
            Ok(config) => {
                *last = Arc::new(config);
                None
            }
            Err(fault) => Some(fault),
        };
        (last.clone(), fault)
    }
}

fn config(trust: &Trust, identity: Option<&Identity>) -> Result<ClientConfig, Fault> {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone());
    let builder = builder.with_safe_default_protocol_versions();
    let builder = builder.map_err(|error| fault(&Place::default(), error.to_string()))?;
    let builder = match trust {
        Trust::Anybodys => builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Anybody(provider))),
        Trust::Systems(place) => builder.with_root_certificates(system_roots(place)?),
        Trust::Of(source) => builder.with_root_certificates(roots(source)?),
    };
    let mut config = match identity {
        None => builder.with_no_client_auth(),
        Some(Identity { certificate, key }) => builder
            .with_client_auth_cert(certificate.certificates()?, key.key()?)
            .map_err(|error| key.fault(unfit(&error)))?,
    };
    // A session is of the files that it was made with.
    config.resumption = Resumption::disabled();
    Ok(config)
}

fn unfit(error: &Error) -> String {
    match error {
        Error::InconsistentKeys(_) => "is not the key of the certificate".into(),
        error => format!("cannot be used: {error}"),
    }
}

fn roots(source: &Source) -> Result<RootCertStore, Fault> {
    let mut roots = RootCertStore::empty();
    for certificate in source.certificates()? {
        let added = roots.add(certificate);
        added.map_err(|error| source.fault(format!("has a certificate that is none: {error}")))?;
    }
    Ok(roots)
}

fn system_roots(place: &Place) -> Result<RootCertStore, Fault> {
    let mut bundles = SYSTEM.iter().map(Path::new);
    let mut roots = RootCertStore::empty();
    if let Some(bundle) = bundles.find(|bundle| bundle.is_file()) {
        let source = Source {
            place: place.clone(),
            pem: Pem::File(bundle.into()),
        };
        // Among so many there may be one that is not read here.
        roots.add_parsable_certificates(source.certificates()?);
    }
    if roots.is_empty() {
        let what = "is missing, and the machine trusts no authority of its own; \
                    name the one that signed the API server's certificate";
        return Err(fault(place, what.into()));
    }
    Ok(roots)
}

impl Source {
    fn bytes(&self) -> Result<Cow<'_, [u8]>, Fault> {
        let file = match &self.pem {
            Pem::Data(bytes) => return Ok(bytes.into()),
            Pem::File(file) => file,
        };
        let bytes = file::read(file).map_err(|what| self.fault(what))?;
        if bytes.len() as u64 > LARGEST {
            return Err(self.fault("is larger than 1 MiB".into()));
        }
        Ok(bytes.into())
    }

    /// One at least.
    fn certificates(&self) -> Result<Vec<CertificateDer<'static>>, Fault> {
        let bytes = self.bytes()?;
        let certificates = CertificateDer::pem_slice_iter(&bytes).collect::<Result<Vec<_>, _>>();
        // What the reader says might quote it.
        let certificates = certificates.map_err(|_| self.fault("is not whole in PEM".into()))?;
        if certificates.is_empty() {
            return Err(self.fault("has no certificate in PEM".into()));
        }
        Ok(certificates)
    }

    fn key(&self) -> Result<PrivateKeyDer<'static>, Fault> {
        let bytes = self.bytes()?;
        let key = PrivateKeyDer::from_pem_slice(&bytes);
        key.map_err(|_| self.fault("has no private key in PEM, or an encrypted one".into()))
    }

    fn fault(&self, what: String) -> Fault {
        match &self.pem {
            Pem::File(file) => fault(&self.place, format!("{} {what}", file.display())),
            Pem::Data(_) => fault(&self.place, what),
        }
    }
}

fn fault(place: &Place, what: String) -> Fault {
    Fault {
        place: place.clone(),
        what,
    }
}

/// Takes every certificate, of which the server has to have the key.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _certificate: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
