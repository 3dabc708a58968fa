//! What has the driver's names and is not the driver.

use crate::common::elf::{Machine, SharedObject};
use crate::kit::{Kit, Part};
use crate::tree::Tree;

/// libglvnd's libraries, file and SONAME, as most distributions and NVIDIA's
/// installer have them.
const GLVND: [(&str, &str); 7] = [
    ("libEGL.so.1.1.0", "libEGL.so.1"),
    ("libGL.so.1.7.0", "libGL.so.1"),
    ("libGLESv1_CM.so.1.2.0", "libGLESv1_CM.so.1"),
    ("libGLESv2.so.2.1.0", "libGLESv2.so.2"),
    ("libGLX.so.0.0.0", "libGLX.so.0"),
    ("libGLdispatch.so.0.0.0", "libGLdispatch.so.0"),
    ("libOpenGL.so.0.0.0", "libOpenGL.so.0"),
];

pub fn glvnd(tree: &Tree, folder: &str) {
    for (file, soname) in GLVND {
        library(tree, folder, file, soname);
    }
}

/// Mesa's, another vendor of OpenGL.
pub fn mesa(tree: &Tree, folder: &str) {
    library(tree, folder, "libEGL_mesa.so.0.0.0", "libEGL_mesa.so.0");
    library(tree, folder, "libGLX_mesa.so.0.0.0", "libGLX_mesa.so.0");
    tree.link(format!("{folder}/libGLX_indirect.so.0"), "libGLX_mesa.so.0");
}

fn library(tree: &Tree, folder: &str, file: &str, soname: &str) {
    tree.write(
        format!("{folder}/{file}"),
        SharedObject::named(soname).bytes(),
    );
    tree.link(format!("{folder}/{soname}"), file);
}

/// The same driver for 32-bit programs, its own files where the packages have
/// them.
pub fn for_32_bits(kit: &Kit, tree: &Tree, folder: &str) {
    for (stem, soname) in [
        ("libcuda", "libcuda.so.1"),
        ("libnvidia-allocator", "libnvidia-allocator.so.1"),
        ("libnvidia-ml", "libnvidia-ml.so.1"),
        ("libnvidia-opencl", "libnvidia-opencl.so.1"),
        ("libGLX_nvidia", "libGLX_nvidia.so.0"),
    ] {
        let name = format!("{stem}.so.{}", kit.version);
        let real = kit.parts(Part::Library32).find(|file| file.name == name);
        match real {
            Some(file) => tree.part(file, folder),
            None => {
                let bytes = SharedObject::named(soname).on(Machine::I386).bytes();
                tree.write(format!("{folder}/{name}"), bytes)
            }
        };
        tree.link(format!("{folder}/{soname}"), name);
    }
}

/// What CUDA's toolkit has for linking programs.
pub fn stub(soname: &str) -> Vec<u8> {
    SharedObject::named(soname).bytes()
}

/// A library of another version of the driver.
pub fn of_another_version(tree: &Tree, folder: &str, stem: &str, version: &str) {
    let bytes = SharedObject::named(&format!("{stem}.so.1")).bytes();
    tree.write(format!("{folder}/{stem}.so.{version}"), bytes);
}

/// A library of this version of the driver for another processor.
pub fn for_another_processor(kit: &Kit, tree: &Tree, folder: &str, stem: &str) {
    let other = match Machine::HERE {
        Machine::Aarch64 => Machine::X86_64,
        _ => Machine::Aarch64,
    };
    let bytes = SharedObject::named(&format!("{stem}.so.1"))
        .on(other)
        .bytes();
    tree.write(format!("{folder}/{stem}.so.{}", kit.version), bytes);
}
