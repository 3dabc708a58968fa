//! A plugin's command line.

use std::path::Path;

use tokio::process::Command;

use super::common::nvml::SimulatedNode;

/// All defaults but for the paths, and for the port, which another may have.
const OURS: &str = "--device-plugin-dir={dir} --nvml-library={nvml} --driver-root={driver_root} \
                    --dev-root={dev_root} --dev-char-root={dev_root}/dev/char \
                    --sysfs-root={sys} --procfs-root={proc} --state-dir={state} \
                    --kmsg={kmsg} --http-listen=127.0.0.1:0 --config-file={config}";

/// In an argument that a run without a configuration file goes without.
const CONFIG: &str = "{config}";

/// A plugin to measure.
#[derive(Debug, Clone)]
pub(crate) struct Subject {
    pub(crate) name: String,
    environment: Vec<(String, String)>,
    program: String,
    arguments: Vec<String>,
}

impl Subject {
    /// This package's plugin. `program` is not the one that Cargo builds for a
    /// benchmark: that has what tests alone need of the dependencies.
    pub(crate) fn ours(program: &Path) -> Self {
        Self {
            name: env!("CARGO_PKG_NAME").to_owned(),
            environment: Vec::new(),
            program: program.to_string_lossy().into_owned(),
            arguments: OURS.split(' ').map(str::to_owned).collect(),
        }
    }

    /// The same, as another file, in callgrind, which writes a file into `folder` for
    /// each run.
    pub(crate) fn in_callgrind(plugin: &Path, folder: &Path) -> Self {
        let out = folder.join("callgrind.out.%p");
        let ours = Self::ours(plugin);
        let options = [
            "--tool=callgrind".to_owned(),
            "--demangle=no".to_owned(),
            format!("--callgrind-out-file={}", out.display()),
            ours.program,
        ];
        Self {
            program: "valgrind".to_owned(),
            arguments: options.into_iter().chain(ours.arguments).collect(),
            ..ours
        }
    }

    /// Reads `NAME=COMMAND LINE`.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let (name, command) = text
            .split_once('=')
            .filter(|(name, _)| !name.is_empty())
            .ok_or("no name: NAME='COMMAND LINE'")?;
        let mut words = words(command)?.into_iter().peekable();
        let mut environment = Vec::new();
        while let Some(assignment) = words.next_if(|word| is_assignment(word)) {
            environment.extend(
                assignment
                    .split_once('=')
                    .map(|(name, value)| (name.to_owned(), value.to_owned())),
            );
        }
        Ok(Self {
            name: name.to_owned(),
            environment,
            program: words.next().ok_or("no command")?,
            arguments: words.collect(),
        })
    }

    /// Whether it can be given a configuration file.
    pub(crate) fn takes_config(&self) -> bool {
        self.arguments.iter().any(|word| word.contains(CONFIG))
    }

    /// The command on this node.
    pub(crate) fn command(&self, node: &SimulatedNode, config: Option<&Path>) -> Command {
        let fill = |text: &String| fill(text, node);
        let mut command = Command::new(fill(&self.program));
        for word in &self.arguments {
            match config {
                Some(config) => {
                    command.arg(fill(word).replace(CONFIG, &config.to_string_lossy()));
                }
                None if word.contains(CONFIG) => {}
                None => {
                    command.arg(fill(word));
                }
            }
        }
        let environment = self.environment.iter();
        command.envs(environment.map(|(name, value)| (name, fill(value))));
        command
    }
}

fn fill(text: &str, node: &SimulatedNode) -> String {
    let nvml = node.nvml_library();
    let places = [
        ("{dir}", node.device_plugin_dir()),
        (
            "{kubelet_socket}",
            node.device_plugin_dir().join("kubelet.sock"),
        ),
        (
            "{nvml_dir}",
            nvml.parent().unwrap_or(Path::new("/")).to_owned(),
        ),
        ("{nvml}", nvml),
        ("{driver_root}", node.driver_root()),
        ("{dev_root}", node.dev_root()),
        ("{state}", node.state_dir()),
        ("{kmsg}", node.kmsg()),
        ("{sys}", node.sys()),
        ("{proc}", node.proc()),
    ];
    places.iter().fold(text.to_owned(), |text, (word, path)| {
        text.replace(word, &path.to_string_lossy())
    })
}

fn is_assignment(word: &str) -> bool {
    let is_name = |name: &str| {
        !name.starts_with(|first: char| first.is_ascii_digit())
            && !name.is_empty()
            && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
    };
    word.split_once('=').is_some_and(|(name, _)| is_name(name))
}

/// Splits as a shell does, with quotes and backslashes and nothing else.
fn words(text: &str) -> Result<Vec<String>, String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut letters = text.chars();
    while let Some(letter) = letters.next() {
        match (quote, letter) {
            (Some(open), _) if open == letter => quote = None,
            (None, '\'' | '"') => {
                quote = Some(letter);
                word.get_or_insert_default();
            }
            (None | Some('"'), '\\') => match letters.next() {
                Some('\n') => {}
                next => word
                    .get_or_insert_default()
                    .push(next.ok_or("a backslash at the end")?),
            },
            (None, space) if space.is_whitespace() => words.extend(word.take()),
            _ => word.get_or_insert_default().push(letter),
        }
    }
    words.extend(word);
    match quote {
        Some(open) => Err(format!("{open} is not closed")),
        None => Ok(words),
    }
}
