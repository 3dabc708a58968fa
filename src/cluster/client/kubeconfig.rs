//! A kubeconfig: who is asked, and as whom, by its current context.
//!
//! What kubectl does not know is let pass, as kubectl does. What it knows and we
//! do not is refused, as it may be the one thing that matters.

use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use tokio_rustls::rustls::pki_types::ServerName;

use super::access::{Access, Server, Token};
use super::tls::{Identity, Pem, Source, Tls, Trust};
use crate::cluster::error::ClusterError;
use crate::cluster::text::cut;
use crate::config::file::{self, Content, Fault, Node, Place, secret_tree};

const TOKEN_INSTEAD: &str = "use a token, a tokenFile or a client certificate";
/// What a user cannot be here, and what helps.
const UNSUPPORTED_USERS: [(&str, &str); 8] = [
    ("exec", TOKEN_INSTEAD),
    ("auth-provider", TOKEN_INSTEAD),
    ("username", TOKEN_INSTEAD),
    ("password", TOKEN_INSTEAD),
    ("as", "use the credentials of that user"),
    ("as-uid", "use the credentials of that user"),
    ("as-groups", "use the credentials of such a user"),
    ("as-user-extra", "use the credentials of such a user"),
];
const UNSUPPORTED_CLUSTERS: [(&str, &str); 1] = [(
    "proxy-url",
    "name the API server by an address that is reached without",
)];

/// Of a name that is quoted, in bytes.
const LONGEST_NAME: usize = 80;

/// What the file says, with all that it names.
pub(super) fn access(file: &Path) -> Result<Access, ClusterError> {
    read(file).map_err(|fault| {
        let fault = fault.within(file);
        ClusterError::NotConfigured(format!("cannot use the kubeconfig {fault}"))
    })
}

fn read(file: &Path) -> Result<Access, Fault> {
    let bytes = file::read(file).map_err(|what| Fault {
        place: Place::default(),
        what: one_file(file, what),
    })?;
    let root = secret_tree(&bytes)?;
    let root = Section::of(&root, String::new(), 0)?;
    let folder = file.parent().unwrap_or(Path::new(""));
    let name = root.needed("current-context", "it names the context to use")?;
    let context = root.named("contexts", name, "context")?;
    let name = context.needed("cluster", "it names the cluster to use")?;
    let cluster = root.named("clusters", name, "cluster")?;
    let user = match context.text("user")? {
        Some(name) => root.named("users", name, "user")?,
        None => Section::default(),
    };
    cluster.refuse(&UNSUPPORTED_CLUSTERS)?;
    user.refuse(&UNSUPPORTED_USERS)?;
    let server = server(&cluster)?;
    let tls = match server.is_https {
        true => Some(tls(&server, &cluster, &user, folder)?),
        false => None,
    };
    let token = token(&user, folder)?;
    Ok(Access { server, tls, token })
}

/// kubectl takes more than one, and has its own idea of which of them counts.
fn one_file(file: &Path, what: String) -> String {
    if file.to_string_lossy().contains(':') {
        return format!("{what}; only one file can be named");
    }
    what
}

fn server(cluster: &Section) -> Result<Server, Fault> {
    let url = cluster.needed("server", "it is the API server's address")?;
    Server::parse(url).map_err(|what| cluster.fault("server", what))
}

fn tls(server: &Server, cluster: &Section, user: &Section, folder: &Path) -> Result<Tls, Fault> {
    let (key, name) = match cluster.text("tls-server-name")? {
        Some(name) => ("tls-server-name", name),
        None => ("server", server.host.as_str()),
    };
    let name = ServerName::try_from(name.to_owned());
    let name = name.map_err(|_| cluster.fault(key, "is no name that a certificate can be for"))?;
    Tls::new(name, trust(cluster, folder)?, identity(user, folder)?)
}

fn trust(cluster: &Section, folder: &Path) -> Result<Trust, Fault> {
    let authority = cluster.source("certificate-authority", folder)?;
    match (authority, cluster.is_true("insecure-skip-tls-verify")?) {
        (None, true) => Ok(Trust::Anybodys),
        (Some(source), false) => Ok(Trust::Of(source)),
        (None, false) => Ok(Trust::Systems(cluster.place("certificate-authority"))),
        (Some(_), true) => Err(cluster.fault(
            "insecure-skip-tls-verify",
            "contradicts the certificate-authority; take one of them out",
        )),
    }
}

fn identity(user: &Section, folder: &Path) -> Result<Option<Identity>, Fault> {
    const CERTIFICATE: &str = "client-certificate";
    const KEY: &str = "client-key";
    let certificate = user.source(CERTIFICATE, folder)?;
    match (certificate, user.source(KEY, folder)?) {
        (None, None) => Ok(None),
        (Some(certificate), Some(key)) => Ok(Some(Identity { certificate, key })),
        (Some(_), None) => Err(user.fault(KEY, "is missing; the certificate is of no use without")),
        (None, Some(_)) => Err(user.fault(CERTIFICATE, "is missing; its key is there")),
    }
}

fn token(user: &Section, folder: &Path) -> Result<Token, Fault> {
    if let Some(token) = user.text("token")? {
        return Token::fixed(token).map_err(|what| user.fault("token", what));
    }
    match user.text("tokenFile")? {
        Some(file) => Token::in_file(folder.join(file), &user.place("tokenFile")),
        None => Ok(Token::None),
    }
}

/// A part of the file with keys of its own.
#[derive(Default)]
struct Section<'a> {
    path: String,
    line: u64,
    entries: &'a [(Node, Node)],
}

impl<'a> Section<'a> {
    /// `line` is that of its name.
    fn of(node: &'a Node, path: String, line: u64) -> Result<Self, Fault> {
        let entries: &[_] = match &node.content {
            Content::Map(entries) => entries,
            Content::Nothing => &[],
            _ => {
                let (place, kind) = (Place { line, key: path }, node.kind());
                let what = format!("is {kind}, not a section");
                return Err(Fault { place, what });
            }
        };
        Ok(Self {
            path,
            line,
            entries,
        })
    }

    fn entry(&self, key: &str) -> Option<&'a (Node, Node)> {
        self.entries
            .iter()
            .find(|entry| entry.0.text() == Some(key))
    }

    /// What a key says, if it says something.
    fn value(&self, key: &str) -> Result<Option<&'a Node>, Fault> {
        let mut values = self.entries.iter();
        let mut values = values.by_ref().filter(|entry| entry.0.text() == Some(key));
        let value = values.next().map(|entry| &entry.1);
        if values.next().is_some() {
            return Err(self.fault(key, "is there twice"));
        }
        Ok(value.filter(|value| value.content != Content::Nothing))
    }

    /// An empty text is none, as to kubectl.
    fn text(&self, key: &str) -> Result<Option<&'a str>, Fault> {
        let Some(value) = self.value(key)? else {
            return Ok(None);
        };
        match value.text() {
            Some(text) => Ok(Some(text).filter(|text| !text.is_empty())),
            None => Err(self.fault(key, &format!("is {}, not one value", value.kind()))),
        }
    }

    fn needed(&self, key: &str, why: &str) -> Result<&'a str, Fault> {
        let text = self.text(key)?;
        text.ok_or_else(|| self.fault(key, &format!("is missing; {why}")))
    }

    fn is_true(&self, key: &str) -> Result<bool, Fault> {
        match self.text(key)? {
            Some("true") => Ok(true),
            Some("false") | None => Ok(false),
            Some(_) => Err(self.fault(key, "is neither true nor false")),
        }
    }

    /// The section `key` of the item with this name in a list.
    fn named(&self, list: &str, name: &str, key: &str) -> Result<Section<'a>, Fault> {
        let items = match self.value(list)?.map(|list| &list.content) {
            Some(Content::List(items)) => items.as_slice(),
            Some(_) => return Err(self.fault(list, "is not a list")),
            None => &[],
        };
        let path = format!(
            "{list}.{}",
            cut(&name.escape_debug().to_string(), LONGEST_NAME)
        );
        for item in items {
            let item = Section::of(item, path.clone(), item.line)?;
            if item.value("name")?.and_then(Node::text) == Some(name) {
                let line = item.line_of(key);
                let path = format!("{path}.{key}");
                return match item.value(key)? {
                    Some(section) => Section::of(section, path, line),
                    None => Ok(Section {
                        path,
                        line,
                        entries: &[],
                    }),
                };
            }
        }
        let fault = |what: &str| self.fault(list, what);
        let name = cut(name, LONGEST_NAME);
        Err(fault(&format!("has none with the name {name:?}")))
    }

    /// PEM in a file, or in the key with `-data` to its name, which counts where
    /// both are there.
    fn source(&self, key: &str, folder: &Path) -> Result<Option<Source>, Fault> {
        let data = format!("{key}-data");
        if let Some(text) = self.text(&data)? {
            let text: String = text.split_ascii_whitespace().collect();
            let bytes = STANDARD.decode(text);
            let bytes = bytes.map_err(|_| self.fault(&data, "is not base64"))?;
            let place = self.place(&data);
            let pem = Pem::Data(bytes);
            return Ok(Some(Source { place, pem }));
        }
        let file: Option<PathBuf> = self.text(key)?.map(|file| folder.join(file));
        Ok(file.map(|file| Source {
            place: self.place(key),
            pem: Pem::File(file),
        }))
    }

    fn refuse(&self, keys: &[(&str, &str)]) -> Result<(), Fault> {
        for (key, remedy) in keys {
            let value = self.value(key)?;
            if value.is_some_and(|value| value.text() != Some("")) {
                return Err(self.fault(key, &format!("is not supported; {remedy}")));
            }
        }
        Ok(())
    }

    fn line_of(&self, key: &str) -> u64 {
        self.entry(key).map_or(self.line, |entry| entry.0.line)
    }

    /// Where a key is, or where it would be.
    fn place(&self, key: &str) -> Place {
        let dot = if self.path.is_empty() { "" } else { "." };
        Place {
            line: self.line_of(key),
            key: format!("{}{dot}{key}", self.path),
        }
    }

    fn fault(&self, key: &str, what: &str) -> Fault {
        Fault {
            place: self.place(key),
            what: what.into(),
        }
    }
}

#[cfg(test)]
mod tests;
