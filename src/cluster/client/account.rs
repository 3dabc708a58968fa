//! A pod's service account.

use std::ffi::OsString;
use std::net::IpAddr;
use std::path::Path;

use tokio_rustls::rustls::pki_types::ServerName;

use super::access::{Access, Server, Token};
use super::tls::{Pem, Source, Tls, Trust};
use crate::cluster::error::ClusterError;
use crate::config::file::{Fault, Place};

const HOST: &str = "KUBERNETES_SERVICE_HOST";
const PORT: &str = "KUBERNETES_SERVICE_PORT";

/// By the variables that the kubelet sets, and the files that it mounts.
pub(super) fn access(
    folder: &Path,
    variable: impl Fn(&str) -> Option<OsString>,
) -> Result<Access, ClusterError> {
    let access = server(variable).and_then(|server| by_files(folder, server));
    access.map_err(|error| {
        ClusterError::NotConfigured(format!(
            "no service account to ask the API server with ({error}); let the pod have \
             its token (automountServiceAccountToken), or name a file with --kubeconfig"
        ))
    })
}

fn server(variable: impl Fn(&str) -> Option<OsString>) -> Result<Server, String> {
    let value = |name: &str| {
        let value = variable(name).filter(|value| !value.is_empty());
        let value = value.ok_or_else(|| format!("{name} is not set"))?;
        let text = value.into_string();
        text.map_err(|value| format!("{name} is {value:?}"))
    };
    let (host, port) = (value(HOST)?, value(PORT)?);
    let in_url = match host.parse() {
        Ok(IpAddr::V6(address)) => format!("[{address}]"),
        _ => host,
    };
    Server::parse(&format!("https://{in_url}:{port}"))
        .map_err(|what| format!("{HOST} and {PORT}: https://{in_url}:{port} {what}"))
}

fn by_files(folder: &Path, server: Server) -> Result<Access, String> {
    let words = |fault: Fault| fault.what;
    let place = Place::default();
    let token = Token::in_file(folder.join("token"), &place).map_err(words)?;
    let name = ServerName::try_from(server.host.clone());
    let name = name.map_err(|_| format!("{HOST} is no name: {}", server.host))?;
    let authority = Trust::Of(Source {
        place,
        pem: Pem::File(folder.join("ca.crt")),
    });
    let tls = Some(Tls::new(name, authority, None).map_err(words)?);
    Ok(Access { server, tls, token })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(host: &str, port: &str) -> Result<Server, String> {
        server(|name| {
            let value = if name == HOST { host } else { port };
            (value != "unset").then(|| value.into())
        })
    }

    #[test]
    fn the_variables_make_an_address() {
        for (host, port, wanted) in [
            ("10.96.0.1", "443", ("10.96.0.1", 443)),
            ("fd00:10:96::1", "443", ("fd00:10:96::1", 443)),
            (
                "kubernetes.default.svc",
                "6443",
                ("kubernetes.default.svc", 6443),
            ),
        ] {
            let server = of(host, port).unwrap();
            assert!(server.is_https);
            assert_eq!((server.host.as_str(), server.port), wanted);
        }
    }

    #[test]
    fn what_is_wrong_with_them_is_named() {
        for (host, port, words) in [
            ("unset", "443", "KUBERNETES_SERVICE_HOST is not set"),
            ("", "443", "KUBERNETES_SERVICE_HOST is not set"),
            ("10.96.0.1", "unset", "KUBERNETES_SERVICE_PORT is not set"),
            (
                "10.96.0.1",
                "https",
                "https://10.96.0.1:https has a port that is none",
            ),
            ("10.96.0.1", "70000", "has a port that is none"),
            ("a b", "443", "is no address"),
        ] {
            let error = of(host, port).err().unwrap_or_default();
            assert!(error.contains(words), "{host}:{port}: {error}");
        }
    }

    #[test]
    fn a_missing_file_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let refused = || {
            let value = |name: &str| Some(if name == HOST { "10.96.0.1" } else { "443" }.into());
            access(folder.path(), value).err().unwrap().to_string()
        };
        let error = refused();
        assert!(error.contains("/token cannot be read"), "{error}");
        assert!(error.contains("automountServiceAccountToken"), "{error}");
        std::fs::write(folder.path().join("token"), "t").unwrap();
        let error = refused();
        assert!(error.contains("/ca.crt cannot be read"), "{error}");
        std::fs::write(folder.path().join("ca.crt"), "").unwrap();
        let error = refused();
        assert!(error.contains("/ca.crt has no certificate"), "{error}");
    }
}
