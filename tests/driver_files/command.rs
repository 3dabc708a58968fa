//! The `driver` command over a layout: what it prints, and its exit code.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use tempfile::TempDir;

use crate::common::system::{is_root, on_path};
use crate::kit::{self, Kit, MULTIARCH};
use crate::layouts::distributions::UBUNTU;
use crate::tree::Tree;

/// What the kernel shows of a node: procfs, sysfs and device nodes, which are
/// plain files here.
pub struct Node {
    dir: TempDir,
}

impl Node {
    /// The module of this version is loaded, and there is one GPU.
    pub fn new(version: &str) -> Self {
        let node = Self::bare();
        node.write(
            "proc/driver/nvidia/version",
            &format!("NVRM version: NVIDIA UNIX x86_64 Kernel Module  {version}  Mon Jan 1\n"),
        );
        for name in ["nvidiactl", "nvidia-uvm", "nvidia0"] {
            node.write(&format!("dev/{name}"), "");
        }
        node
    }

    /// No module, no node.
    fn bare() -> Self {
        let node = Self {
            dir: tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap(),
        };
        for folder in ["proc", "sys", "dev"] {
            fs::create_dir(node.path(folder)).unwrap();
        }
        node
    }

    fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// The command with this driver root, which is `/` on its host.
    pub fn driver(&self, root: &Path) -> Driver<'_> {
        let option = |name: &str, path: &Path| format!("--{name}={}", path.display());
        let arguments = [
            "driver".to_owned(),
            option("driver-root-ctr-path", root),
            option("dev-root", self.dir.path()),
            option("host-root", Path::new("/")),
            option("state-dir", &self.path("state")),
            option("procfs-root", &self.path("proc")),
            option("sysfs-root", &self.path("sys")),
        ];
        Driver {
            _node: self,
            root: root.to_path_buf(),
            arguments: arguments.into(),
        }
    }
}

/// The command, to be run.
pub struct Driver<'a> {
    _node: &'a Node,
    root: PathBuf,
    arguments: Vec<String>,
}

/// What came of it.
#[derive(Debug)]
pub struct Ran {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

/// What the shell answers where it cannot mount. The plugin never does.
const UNMOUNTED: i32 = 99;

const PROGRAM: &str = env!("CARGO_BIN_EXE_gpu-device-plugin");

impl Driver<'_> {
    fn ran(command: &mut Command) -> Ran {
        let Output {
            status,
            stdout,
            stderr,
        } = command.output().unwrap();
        Ran {
            code: status.code().unwrap(),
            stdout: String::from_utf8(stdout).unwrap(),
            stderr: String::from_utf8(stderr).unwrap(),
        }
    }

    fn with(&self, more: &[&str]) -> Ran {
        let mut command = Command::new(PROGRAM);
        Self::ran(command.env_clear().args(&self.arguments).args(more))
    }

    /// For a reader.
    pub fn table(&self) -> Ran {
        self.with(&[])
    }

    /// As JSON, with the exit code.
    pub fn json_and_code(&self) -> (Value, i32) {
        let ran = self.with(&["--output=json"]);
        let json = serde_json::from_str(&ran.stdout);
        (
            json.unwrap_or_else(|error| panic!("{error}: {ran:?}")),
            ran.code,
        )
    }

    pub fn json(&self) -> Value {
        self.json_and_code().0
    }

    /// The same, where this folder of the root is a mount that nothing can write
    /// to, in a mount namespace of its own.
    pub fn read_only(mut self, folder: &str) -> Result<ReadOnly, String> {
        if !is_root() || on_path("unshare").is_none() {
            return Err("takes unshare, and root to mount".into());
        }
        let folder = self.root.join(folder).display().to_string();
        let script = format!(
            "mount --bind \"$0\" \"$0\" && mount -o remount,bind,ro \"$0\" || exit {UNMOUNTED}
            touch \"$0/new\" 2>/dev/null && exit {UNMOUNTED}
            exec \"$@\""
        );
        self.arguments.push("--output=json".into());
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "--propagation", "private"])
            .args(["sh", "-c", &script, &folder, PROGRAM])
            .args(&self.arguments);
        let ran = Self::ran(&mut command);
        match ran.code {
            UNMOUNTED => Err(format!("cannot mount read-only: {}", ran.stderr)),
            _ if ran.stderr.starts_with("unshare:") => Err(ran.stderr),
            _ => Ok(ReadOnly(ran)),
        }
    }
}

/// What came of it with a folder that is read-only.
pub struct ReadOnly(Ran);

impl ReadOnly {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.0.stdout).unwrap()
    }
}

// === Tests ===

fn ubuntu(kit: &Kit) -> Tree {
    let tree = Tree::new();
    (UBUNTU.build)(kit, &tree);
    tree
}

fn problems(report: &Value) -> Vec<&str> {
    let problems = report["problems"].as_array().unwrap();
    problems.iter().map(|it| it.as_str().unwrap()).collect()
}

#[test]
fn a_node_that_would_compute() {
    kit::last("a_node_that_would_compute", |kit| {
        let tree = ubuntu(kit);
        let node = Node::new(&kit.version);
        let driver = node.driver(tree.here());
        let (report, code) = driver.json_and_code();
        assert_eq!(problems(&report), Vec::<&str>::new());
        assert_eq!((code, &report["works"]), (0, &Value::Bool(true)));
        for key in ["kernel_module", "driver_version"] {
            assert_eq!(report[key], kit.version.as_str(), "{key}");
        }
        assert_eq!(report["capabilities"], "compute,utility");
        assert_eq!(report["driver_root"], "/");
    });
}

#[test]
fn without_module_and_nodes_it_says_what_is_there_all_the_same() {
    kit::last(
        "without_module_and_nodes_it_says_what_is_there_all_the_same",
        |kit| {
            let tree = ubuntu(kit);
            let node = Node::bare();
            let (report, code) = node.driver(tree.here()).json_and_code();
            assert_eq!(code, 1);
            let dev = |name: &str| node.path("dev").join(name).display().to_string();
            let expected = [
                "no kernel module is loaded; load it with modprobe nvidia".to_owned(),
                format!("{} does not exist", dev("nvidiactl")),
                format!("{} does not exist", dev("nvidia-uvm")),
                format!("no GPU's node is in {}", node.path("dev").display()),
            ];
            assert_eq!(problems(&report), expected);
            assert_eq!(report["kernel_module"], Value::Null);
            assert_eq!(report["driver_version"], kit.version.as_str());
            assert_eq!(
                report["files"],
                Node::new(&kit.version).driver(tree.here()).json()["files"]
            );
        },
    );
}

#[test]
fn the_table_says_what_the_json_says() {
    kit::last("the_table_says_what_the_json_says", |kit| {
        let tree = ubuntu(kit);
        let node = Node::new(&kit.version);
        let driver = node.driver(tree.here());
        let (report, table) = (driver.json(), driver.table());
        assert_eq!((table.code, table.stderr.as_str()), (0, ""));
        let lines: Vec<_> = table.stdout.lines().collect();
        let size = report["size"].as_f64().unwrap() / 1_048_576.0;
        let count = report["files"].as_array().unwrap().len();
        let head = [
            "a container would compute".to_owned(),
            format!("driver: {0} (kernel module: {0})", kit.version),
            format!("root: / (layout: {})", report["layout"].as_str().unwrap()),
            "for containers: in place until the plugin has made a volume".to_owned(),
            format!(
                "files for compute,utility: {count}, {:.1} MiB",
                (size * 10.0).floor() / 10.0
            ),
        ];
        assert_eq!(lines[..5], head);
        assert_eq!(
            format!("for containers: {}", report["from"].as_str().unwrap()),
            head[3]
        );
        let rows: BTreeSet<Vec<&str>> = lines[5..]
            .iter()
            .map(|line| {
                line.split("  ")
                    .map(str::trim)
                    .filter(|it| !it.is_empty())
                    .collect()
            })
            .collect();
        for (list, columns) in [
            ("files", ["capability", "name", "host_path"].as_slice()),
            ("left_out", &["host_path", "reason"]),
            ("missing", &["capability", "name", "cost"]),
            ("from_image", &["name"]),
        ] {
            for entry in report[list].as_array().unwrap() {
                let cells = columns
                    .iter()
                    .map(|column| entry[*column].as_str().unwrap());
                let cells: Vec<_> = cells.collect();
                let is_there = |row: &Vec<&str>| cells.iter().all(|cell| row.contains(cell));
                assert!(rows.iter().any(is_there), "{cells:?} in\n{}", table.stdout);
            }
        }
        let rest = ["left_out", "missing", "from_image", "files"];
        let entries = rest.map(|list| report[list].as_array().unwrap().len());
        let tables = entries.iter().filter(|count| **count > 0).count();
        // A line without text and one with the columns before each.
        let expected = head.len() + entries.iter().sum::<usize>() + 2 * tables;
        assert_eq!(lines.len(), expected, "{}", table.stdout);
    });
}

#[test]
fn without_a_library_that_all_need_nothing_would_compute() {
    kit::last(
        "without_a_library_that_all_need_nothing_would_compute",
        |kit| {
            for stem in ["libcuda", "libnvidia-ml"] {
                let tree = ubuntu(kit);
                tree.remove(format!("{MULTIARCH}/{stem}.so.{}", kit.version));
                let node = Node::new(&kit.version);
                let driver = node.driver(tree.here());
                let (report, code) = driver.json_and_code();
                let problem = problems(&report).join("\n");
                assert_eq!(code, 1, "{problem}");
                assert!(
                    problem.contains(&format!("no {stem}.so.1 of driver")),
                    "{problem}"
                );
                assert!(problem.contains("--driver-root"), "{problem}");
                let dangling = Value::String(format!("/{MULTIARCH}/{stem}.so.1"));
                let left_out = report["left_out"].as_array().unwrap();
                assert!(
                    left_out.iter().any(|left| left["host_path"] == dangling
                        && left["reason"] == "a link that leads nowhere"),
                    "{left_out:?}"
                );
                let table = driver.table();
                assert_eq!(table.code, 1);
                let head = format!("a container would not compute\nproblem: {problem}\n");
                assert!(table.stdout.starts_with(&head), "{}", table.stdout);
            }
        },
    );
}

#[test]
fn a_module_of_another_version_is_a_problem_that_names_both() {
    kit::last(
        "a_module_of_another_version_is_a_problem_that_names_both",
        |kit| {
            let tree = ubuntu(kit);
            let (report, code) = Node::new("999.99").driver(tree.here()).json_and_code();
            let problem = problems(&report).join("\n");
            assert_eq!((code, &report["driver_version"]), (1, &"999.99".into()));
            assert!(problem.contains("of driver 999.99"), "{problem}");
            let instead = format!("found {} instead", kit.version);
            assert!(problem.contains(&instead), "{problem}");
            // Programs do not say of which version they are.
            let files = report["files"].as_array().unwrap();
            let library = |file: &Value| file["name"].as_str().unwrap().contains(".so");
            assert!(!files.iter().any(library), "{files:?}");
        },
    );
}

#[test]
fn all_capabilities_are_more_files() {
    kit::last("all_capabilities_are_more_files", |kit| {
        let tree = ubuntu(kit);
        let node = Node::new(&kit.version);
        let mut driver = node.driver(tree.here());
        let few = driver.json()["files"].as_array().unwrap().len();
        driver.arguments.push("--driver-capabilities=all".into());
        let (report, code) = driver.json_and_code();
        let all = report["files"].as_array().unwrap().len();
        assert!(code == 0 && all > 2 * few, "{code}, {all} of all and {few}");
        assert_eq!(report["capabilities"], "all");
    });
}

/// Needs no driver.
#[test]
fn a_root_that_is_not_there_or_empty() {
    let node = Node::bare();
    for (root, said) in [
        ("gone", "cannot read the driver root"),
        ("sys", "no kernel module is loaded"),
    ] {
        let driver = node.driver(&node.path(root));
        let (report, code) = driver.json_and_code();
        assert_eq!(code, 1, "{report}");
        let problem = problems(&report).join("\n");
        assert!(problem.contains(said), "{problem}");
        assert_eq!(report["files"], Value::Array(Vec::new()));
        let table = driver.table();
        assert_eq!(table.code, 1);
        assert!(table.stdout.contains(said), "{}", table.stdout);
    }
    let told = node.driver(&node.path("gone")).table().stdout;
    for word in ["gone", "--driver-root", "No such file or directory"] {
        assert!(told.contains(word), "{told}");
    }
}
