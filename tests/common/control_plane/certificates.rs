//! Who is who in a cluster: certificates of one authority, by the program openssl.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::common::system::output;

/// Keys and certificates in a folder, each as NAME.key and NAME.crt.
#[derive(Debug)]
pub struct Certificates {
    folder: PathBuf,
}

impl Certificates {
    /// The authority, and the keys of service accounts.
    pub fn make(folder: &Path) -> Self {
        fs::create_dir(folder).expect("create the folder of certificates");
        let certificates = Self {
            folder: folder.into(),
        };
        certificates.make_key("ca");
        certificates.openssl(
            "req -x509 -new -key ca.key -subj /CN=test -days 2 -out ca.crt \
             -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign,cRLSign",
        );
        certificates.openssl("genrsa -out accounts.key 2048");
        certificates.openssl("rsa -in accounts.key -pubout -out accounts.pub");
        certificates
    }

    /// The certificate of a server at these addresses.
    pub fn server(&self, name: &str, subject: &str, addresses: &[IpAddr]) {
        let addresses = addresses.iter().map(|address| format!(",IP:{address}"));
        let addresses: String = addresses.collect();
        let names = format!("subjectAltName=DNS:localhost{addresses}\n");
        self.make_key(name);
        self.sign(
            name,
            subject,
            &format!("extendedKeyUsage=serverAuth\n{names}"),
        );
    }

    /// The certificate of a client; the subject is its user (CN) and group (O).
    pub fn client(&self, name: &str, subject: &str) {
        self.make_key(name);
        self.sign(name, subject, "extendedKeyUsage=clientAuth\n");
    }

    /// The same with a key that openssl makes by these arguments, into NAME.key.
    pub fn client_with(&self, name: &str, subject: &str, key: &str) {
        self.openssl(&format!("{key} -out {name}.key"));
        self.sign(name, subject, "extendedKeyUsage=clientAuth\n");
    }

    /// A file of the folder.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// A kubeconfig of the client with that certificate.
    pub fn kubeconfig(&self, name: &str, server: &str) -> Value {
        let user = json!({
            "client-certificate": self.file(&format!("{name}.crt")),
            "client-key": self.file(&format!("{name}.key")),
        });
        self.kubeconfig_of(&user, server)
    }

    /// A kubeconfig of a client with a token.
    pub fn kubeconfig_with_token(&self, token: &str, server: &str) -> Value {
        self.kubeconfig_of(&json!({ "token": token }), server)
    }

    fn kubeconfig_of(&self, user: &Value, server: &str) -> Value {
        let cluster = json!({"server": server, "certificate-authority": self.file("ca.crt")});
        json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "test", "cluster": cluster}],
            "users": [{"name": "test", "user": user}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
            "current-context": "test",
        })
    }

    fn make_key(&self, name: &str) {
        self.openssl(&format!(
            "ecparam -name prime256v1 -genkey -noout -out {name}.key"
        ));
    }

    fn sign(&self, name: &str, subject: &str, extensions: &str) {
        let common = "basicConstraints=CA:FALSE\nkeyUsage=critical,digitalSignature\n";
        let file = self.file(&format!("{name}.extensions"));
        fs::write(file, format!("{common}{extensions}")).expect("write the extensions");
        self.openssl(&format!(
            "req -new -key {name}.key -subj {subject} -out {name}.request"
        ));
        self.openssl(&format!(
            "x509 -req -in {name}.request -CA ca.crt -CAkey ca.key -CAserial ca.serial \
             -CAcreateserial -days 2 -extfile {name}.extensions -out {name}.crt"
        ));
    }

    /// No argument has a space.
    fn openssl(&self, arguments: &str) {
        let mut openssl = Command::new("openssl");
        openssl.args(arguments.split_whitespace());
        output(openssl.current_dir(&self.folder));
    }
}
