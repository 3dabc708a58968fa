//! What it takes to reach an API server: its address, its certificate's
//! authority, and who asks.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use axum::body::Body;
use http::header::{AUTHORIZATION, HOST, HeaderValue};
use http::{Request, Uri};
use hyper::client::conn::http1::SendRequest;

use super::dial::{Stream, dial, greet};
use super::tls::Tls;
use crate::cluster::error::ClusterError;
use crate::config::file::{self, Fault, Place};

/// All of it.
pub(super) struct Access {
    pub(super) server: Server,
    /// None for plain HTTP.
    pub(super) tls: Option<Tls>,
    pub(super) token: Token,
}

/// Where it listens.
pub(super) struct Server {
    pub(super) is_https: bool,
    /// Without an IPv6 address' brackets.
    pub(super) host: String,
    pub(super) port: u16,
    header: HeaderValue,
    /// Of every path, such as a proxy's of many clusters.
    prefix: String,
}

/// Shown with every request.
pub(super) enum Token {
    None,
    Fixed(HeaderValue),
    File(TokenFile),
}

/// A token that others write anew from time to time.
pub(super) struct TokenFile {
    file: PathBuf,
    last: Mutex<HeaderValue>,
}

impl Access {
    /// The request as it is sent.
    pub(super) fn admit(&self, request: Request<Vec<u8>>) -> Result<Request<Body>, ClusterError> {
        let mut request = request.map(Body::from);
        let path = format!("{}{}", self.server.prefix, request.uri());
        let no_path = |_| ClusterError::InvalidName(path.clone());
        *request.uri_mut() = Uri::try_from(&path).map_err(no_path)?;
        let headers = request.headers_mut();
        headers.insert(HOST, self.server.header.clone());
        if let Some(token) = self.token.header() {
            headers.insert(AUTHORIZATION, token);
        }
        Ok(request)
    }

    /// A new connection.
    pub(super) async fn connect(&self) -> Result<SendRequest<Body>, ClusterError> {
        let connected = async {
            let tcp = dial(&self.server.host, self.server.port).await?;
            let stream: Box<dyn Stream> = match &self.tls {
                Some(tls) => Box::new(tls.shake_hands(tcp).await?),
                None => Box::new(tcp),
            };
            greet(stream).await
        };
        connected.await.map_err(ClusterError::Unreachable)
    }
}

impl Server {
    /// From a URL; what is wrong with it, without the URL itself, in which there
    /// may be a password.
    pub(super) fn parse(url: &str) -> Result<Self, &'static str> {
        let uri: Uri = url
            .parse()
            .map_err(|_| "is no address such as https://10.0.0.1:6443")?;
        let is_https = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err("does not begin with https:// or http://"),
        };
        let authority = uri.authority().ok_or("has no host")?;
        if authority.as_str().contains('@') {
            return Err("has a user in it; who asks is said in a user's section");
        }
        if uri.query().is_some() {
            return Err("has a query, which is for no server but for one request");
        }
        let port = match authority.as_str().strip_prefix(authority.host()) {
            Some("") => Some(if is_https { 443 } else { 80 }),
            _ => authority.port_u16(),
        };
        let host = authority.host();
        let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
        Ok(Self {
            is_https,
            host: bare.unwrap_or(host).to_owned(),
            port: port.ok_or("has a port that is none")?,
            header: HeaderValue::from_str(authority.as_str()).map_err(|_| "has no host")?,
            prefix: uri.path().trim_end_matches('/').to_owned(),
        })
    }
}

impl Token {
    /// One that stays, or what is wrong with it.
    pub(super) fn fixed(token: &str) -> Result<Self, &'static str> {
        bearer(token).map(Self::Fixed)
    }

    /// One in a file, which has to be there now.
    pub(super) fn in_file(file: PathBuf, place: &Place) -> Result<Self, Fault> {
        let last = Mutex::new(read(&file, place)?);
        Ok(Self::File(TokenFile { file, last }))
    }

    /// Files are read anew: a service account's token is another one every hour,
    /// and requests are few. Where one cannot be read the last one may still do.
    fn header(&self) -> Option<HeaderValue> {
        match self {
            Self::None => None,
            Self::Fixed(token) => Some(token.clone()),
            Self::File(TokenFile { file, last }) => {
                let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
                if let Ok(token) = read(file, &Place::default()) {
                    *last = token;
                }
                Some(last.clone())
            }
        }
    }
}

fn read(file: &Path, place: &Place) -> Result<HeaderValue, Fault> {
    let fault = |what: &str| Fault {
        place: place.clone(),
        what: format!("{} {what}", file.display()),
    };
    let bytes = file::read(file).map_err(|what| fault(&what))?;
    let text = std::str::from_utf8(&bytes).map_err(|_| fault("is no token"))?;
    bearer(text).map_err(fault)
}

fn bearer(token: &str) -> Result<HeaderValue, &'static str> {
    let token = token.trim();
    if token.is_empty() {
        return Err("is empty");
    }
    let header = HeaderValue::try_from(format!("Bearer {token}"));
    let mut header = header.map_err(|_| "is no token")?;
    header.set_sensitive(true);
    Ok(header)
}

#[cfg(test)]
mod tests {
    use super::*;

    type Parts = (bool, String, u16, String, String);

    fn server(url: &str) -> Parts {
        let server = Server::parse(url).unwrap();
        let header = server.header.to_str().unwrap().to_owned();
        (
            server.is_https,
            server.host,
            server.port,
            header,
            server.prefix,
        )
    }

    fn address(is_https: bool, host: &str, port: u16, header: &str, prefix: &str) -> Parts {
        (is_https, host.into(), port, header.into(), prefix.into())
    }

    #[test]
    fn addresses() {
        for (url, parts) in [
            ("https://a.b", address(true, "a.b", 443, "a.b", "")),
            ("http://a.b/", address(false, "a.b", 80, "a.b", "")),
            (
                "https://10.0.0.1:6443",
                address(true, "10.0.0.1", 6443, "10.0.0.1:6443", ""),
            ),
            (
                "https://[fd00::1]:6443",
                address(true, "fd00::1", 6443, "[fd00::1]:6443", ""),
            ),
            (
                "https://[fd00::1]",
                address(true, "fd00::1", 443, "[fd00::1]", ""),
            ),
            (
                "https://r/k8s/clusters/c-1/",
                address(true, "r", 443, "r", "/k8s/clusters/c-1"),
            ),
        ] {
            assert_eq!(server(url), parts, "{url}");
        }
    }

    #[test]
    fn what_is_no_address() {
        for (url, why) in [
            ("", "is no address"),
            ("a b", "is no address"),
            ("10.0.0.1:6443", "does not begin with"),
            ("/etc", "does not begin with"),
            ("ftp://a", "does not begin with"),
            ("https://me:secret@a", "has a user in it"),
            ("https://a:0x1", "port"),
            ("https://a:65536", "port"),
            ("https://a:", "port"),
            ("https://a/?b=c", "has a query"),
        ] {
            let said = Server::parse(url).err().unwrap();
            assert!(said.contains(why), "{url}: {said}");
            assert!(!said.contains("secret"), "{said}");
        }
    }

    #[test]
    fn a_token_is_read_anew_and_the_last_one_stays() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token");
        let place = Place {
            line: 3,
            key: "tokenFile".into(),
        };
        let missing = Token::in_file(file.clone(), &place).err().unwrap();
        assert_eq!(missing.place, place);
        std::fs::write(&file, " \n").unwrap();
        let empty = Token::in_file(file.clone(), &place).err().unwrap();
        assert!(empty.what.ends_with("token is empty"), "{}", empty.what);
        std::fs::write(&file, "one\n").unwrap();
        let token = Token::in_file(file.clone(), &place).unwrap();
        let shown = || token.header().unwrap();
        assert_eq!(shown(), "Bearer one");
        std::fs::write(&file, "two").unwrap();
        assert_eq!(shown(), "Bearer two");
        for bad in ["", "a\nb", "\u{0}"] {
            std::fs::write(&file, bad).unwrap();
            assert_eq!(shown(), "Bearer two");
        }
        std::fs::remove_file(&file).unwrap();
        assert_eq!(shown(), "Bearer two");
        assert!(shown().is_sensitive());
        assert!(!format!("{:?}", shown()).contains("two"));
    }
}
