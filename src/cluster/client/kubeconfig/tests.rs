use std::fs;
use std::path::PathBuf;

use tempfile::TempDir;

use super::*;

/// A folder with a kubeconfig in it.
struct Written {
    folder: TempDir,
}

impl Written {
    fn new(text: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("kubeconfig"), text).unwrap();
        Self { folder }
    }

    /// With these keys of the cluster and of the user, one a line.
    fn of(cluster: &[&str], user: &[&str]) -> Self {
        let lines = |lines: &[&str]| {
            let lines = lines.iter().map(|line| format!("\n    {line}"));
            lines.collect::<String>()
        };
        Self::new(&format!(
            "apiVersion: v1\n\
             kind: Config\n\
             preferences: {{}}\n\
             current-context: dev\n\
             clusters:\n\
             - name: other\n\
             - name: c\n  cluster:{}\n\
             contexts:\n\
             - name: dev\n  context: {{cluster: c, user: me, namespace: x}}\n\
             users:\n\
             - name: me\n  user:{}\n",
            lines(cluster),
            lines(user),
        ))
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("kubeconfig")
    }

    fn access(&self) -> Access {
        let access = access(&self.file());
        access.unwrap_or_else(|error| panic!("{error}"))
    }

    /// What is wrong, after the file's name.
    fn fault(&self) -> String {
        let error = access(&self.file()).err().expect("a fault");
        assert!(matches!(error, ClusterError::NotConfigured(_)), "{error:?}");
        let file = self.file();
        let start = format!("cannot use the kubeconfig {}", file.display());
        let text = error.to_string();
        let fault = text.strip_prefix(&start).expect("the file's name");
        fault.replace(&format!("{}/", self.folder.path().display()), "")
    }
}

fn token_of(access: &Access) -> Option<String> {
    let request = http::Request::get("/a").body(Vec::new()).unwrap();
    let request = access.admit(request).unwrap();
    let token = request.headers().get("authorization")?;
    Some(token.to_str().unwrap().into())
}

const HTTP: &str = "server: http://10.0.0.1:8080";
const HTTPS: &str = "server: https://10.0.0.1:6443";
const ANYBODY: &str = "insecure-skip-tls-verify: true";

#[test]
fn a_server_and_a_token() {
    let access = Written::of(&[HTTP], &["token: secret"]).access();
    assert_eq!(
        (access.server.host.as_str(), access.server.port),
        ("10.0.0.1", 8080)
    );
    assert!(access.tls.is_none());
    assert_eq!(token_of(&access).unwrap(), "Bearer secret");
}

#[test]
fn a_number_is_a_token_too() {
    let access = Written::of(&[HTTP], &["token: 0123"]).access();
    assert_eq!(token_of(&access).unwrap(), "Bearer 0123");
}

#[test]
fn paths_are_relative_to_the_kubeconfig() {
    let written = Written::of(&[HTTP], &["tokenFile: in/token"]);
    assert_eq!(
        written.fault(),
        ":16: users.me.user.tokenFile: in/token cannot be read: No such file or directory \
         (os error 2)"
    );
    fs::create_dir(written.folder.path().join("in")).unwrap();
    fs::write(written.folder.path().join("in/token"), "secret\n").unwrap();
    assert_eq!(token_of(&written.access()).unwrap(), "Bearer secret");
}

#[test]
fn a_token_counts_before_a_file() {
    let access = Written::of(&[HTTP], &["tokenFile: none", "token: secret"]).access();
    assert_eq!(token_of(&access).unwrap(), "Bearer secret");
}

#[test]
fn who_asks_may_be_nobody() {
    assert_eq!(token_of(&Written::of(&[HTTP], &[]).access()), None);
    let empty = ["token: ''", "exec: null", "username: \"\"", "as-groups:"];
    assert_eq!(token_of(&Written::of(&[HTTP], &empty).access()), None);
    let without = Written::new(
        "{current-context: a, contexts: [{name: a, context: {cluster: b}}], \
         clusters: [{name: b, cluster: {server: 'http://c'}}]}",
    );
    assert_eq!(token_of(&without.access()), None);
}

#[test]
fn what_nobody_knows_is_let_pass() {
    let cluster = [HTTP, "disable-compression: true", "invented: {a: [1]}"];
    let user = [
        "token: secret",
        "extensions: [{name: a, extension: {b: c}}]",
    ];
    assert!(token_of(&Written::of(&cluster, &user).access()).is_some());
}

#[test]
fn each_key_that_is_not_supported_is_named_with_a_remedy() {
    for (key, value) in [
        ("exec", "{command: aws, args: [eks]}"),
        ("auth-provider", "{name: oidc}"),
        ("username", "admin"),
        ("password", "secret"),
        ("as", "admin"),
        ("as-uid", "1"),
        ("as-groups", "[system:masters]"),
        ("as-user-extra", "{a: [b]}"),
    ] {
        let line = format!("{key}: {value}");
        let fault = Written::of(&[HTTP], &["token: secret", &line]).fault();
        let start = format!(":17: users.me.user.{key}: is not supported; use ");
        assert!(fault.starts_with(&start), "{fault}");
        assert!(!fault.contains("secret"), "{fault}");
    }
    let fault = Written::of(&[HTTP, "proxy-url: http://me:secret@p"], &[]).fault();
    let start = ":10: clusters.c.cluster.proxy-url: is not supported; name ";
    assert!(fault.starts_with(start), "{fault}");
    assert!(!fault.contains("secret"), "{fault}");
}

/// What is said begins so, and quotes no secret.
fn assert_wrong(cluster: &[&str], user: &[&str], fault: &str) {
    let said = Written::of(cluster, user).fault();
    assert!(said.starts_with(fault), "{said}\n{fault}");
    assert!(!said.contains("secret") && !said.contains("c2Vj"), "{said}");
}

#[test]
fn each_value_of_a_cluster_that_is_wrong_is_named() {
    for (lines, fault) in [
        (&[][..], ":8: clusters.c.cluster.server: is missing"),
        (
            &["server: 10.0.0.1:6443"],
            ":9: clusters.c.cluster.server: does not begin with",
        ),
        (
            &["server: [a]"],
            ":9: clusters.c.cluster.server: is a list, not one value",
        ),
        (
            &["server: https://me:secret@a"],
            ":9: clusters.c.cluster.server: has a user in it",
        ),
        (
            &[HTTP, HTTP],
            ":9: clusters.c.cluster.server: is there twice",
        ),
        (
            &[HTTPS, "insecure-skip-tls-verify: maybe"],
            ":10: clusters.c.cluster.insecure-skip-tls-verify: is neither true nor false",
        ),
        (
            &[HTTPS, ANYBODY, "certificate-authority: ca.crt"],
            ":10: clusters.c.cluster.insecure-skip-tls-verify: contradicts",
        ),
        (
            &[HTTPS, "certificate-authority: ca.crt"],
            ":10: clusters.c.cluster.certificate-authority: ca.crt cannot be read",
        ),
        (
            &[HTTPS, "certificate-authority: kubeconfig"],
            ":10: clusters.c.cluster.certificate-authority: kubeconfig has no certificate in PEM",
        ),
        (
            &[HTTPS, "certificate-authority-data: '%'"],
            ":10: clusters.c.cluster.certificate-authority-data: is not base64",
        ),
        (
            &[HTTPS, "certificate-authority-data: c2VjcmV0"],
            ":10: clusters.c.cluster.certificate-authority-data: has no certificate in PEM",
        ),
        (
            &[HTTPS, ANYBODY, "tls-server-name: a b"],
            ":11: clusters.c.cluster.tls-server-name: is no name",
        ),
    ] {
        assert_wrong(lines, &[], fault);
    }
}

#[test]
fn each_value_of_a_user_that_is_wrong_is_named() {
    for (lines, fault) in [
        (
            &["client-key-data: c2VjcmV0"][..],
            ":16: users.me.user.client-certificate: is missing",
        ),
        (
            &["client-certificate: me.crt"],
            ":16: users.me.user.client-key: is missing",
        ),
        (
            &["client-certificate: me.crt", "client-key: me.key"],
            ":17: users.me.user.client-certificate: me.crt cannot be read",
        ),
    ] {
        assert_wrong(&[HTTPS, ANYBODY], lines, fault);
    }
    for (line, fault) in [
        (
            "token: [secret]",
            ":16: users.me.user.token: is a list, not one value",
        ),
        (
            "token: \"sec\\nret\"",
            ":16: users.me.user.token: is no token",
        ),
    ] {
        assert_wrong(&[HTTP], &[line], fault);
    }
}

#[test]
fn what_the_context_names_has_to_be_there() {
    for (text, fault) in [
        (
            "",
            ": current-context: is missing; it names the context to use",
        ),
        (
            "kind: Config",
            ": current-context: is missing; it names the context to use",
        ),
        (
            "current-context: ''",
            ":1: current-context: is missing; it names the context to use",
        ),
        (
            "current-context: a",
            ": contexts: has none with the name \"a\"",
        ),
        (
            "current-context: a\ncontexts: a",
            ":2: contexts: is not a list",
        ),
        (
            "current-context: a\ncontexts:\n- a",
            ":3: contexts.a: is one value, not a section",
        ),
        (
            "current-context: a\ncontexts:\n- name: a",
            ":3: contexts.a.context.cluster: is missing; it names the cluster to use",
        ),
        (
            "current-context: a\ncontexts:\n- {name: a, context: 1}",
            ":3: contexts.a.context: is one value, not a section",
        ),
        (
            "current-context: a\nclusters: [{name: b}]\n\
             contexts:\n- {name: a, context: {cluster: c}}",
            ":2: clusters: has none with the name \"c\"",
        ),
        (
            "current-context: a\nclusters: [{name: c}]\n\
             contexts:\n- {name: a, context: {cluster: c, user: d}}",
            ": users: has none with the name \"d\"",
        ),
    ] {
        assert_eq!(Written::new(text).fault(), fault, "{text}");
    }
}

#[test]
fn what_is_no_yaml_is_not_quoted() {
    for text in [
        "{",
        "\u{0}",
        "token: *secret",
        "token: \"secret",
        "a: secret\n b: secret: c",
        "token: !secret [",
    ] {
        let fault = Written::new(text).fault();
        assert!(fault.ends_with("is no YAML"), "{text:?}: {fault}");
    }
    let two = Written::new("kind: Config\n---\nkind: Config\n").fault();
    assert!(two.ends_with("has more than one document"), "{two}");
    let latin = Written::new("");
    fs::write(latin.file(), b"a: \xff").unwrap();
    assert_eq!(latin.fault(), ": is not UTF-8");
}

#[test]
fn a_hostile_file_is_refused_at_once() {
    let larger = ": is larger than 1 MiB";
    assert_eq!(Written::new(&"#".repeat((1 << 20) + 1)).fault(), larger);
    let mut laughs = "a: &a [secret, secret]\n".to_owned();
    for (name, of) in ('b'..='z').zip('a'..) {
        laughs += &format!("{name}: &{name} [*{of}, *{of}, *{of}, *{of}, *{of}, *{of}]\n");
    }
    for text in [laughs, "[".repeat(100_000), "{a: ".repeat(100_000)] {
        let fault = Written::new(&text).fault();
        assert!(fault.len() < 200 && !fault.contains("secret"), "{fault}");
    }
}

#[test]
fn a_file_that_is_none_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |file: &Path| access(file).err().unwrap().to_string();
    let error = refused(folder.path());
    assert!(error.contains("is not a regular file"), "{error}");
    let error = refused(&folder.path().join("a:b"));
    assert!(error.contains("only one file can be named"), "{error}");
}
