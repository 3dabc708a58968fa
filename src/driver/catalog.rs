//! What a driver consists of: which file is for what, where a container looks
//! for it, and what its lack costs.
//!
//! The split by capability is that of NVIDIA's container runtime
//! (libnvidia-container, src/nvc_info.c), with what came since.

use std::ops::RangeInclusive;

use super::capabilities::Capability;
use super::capabilities::Capability::{Compute, Display, Graphics, Ngx, Utility, Video};

/// CUDA's driver interface, by SONAME.
pub(super) const LIBCUDA: &str = "libcuda.so.1";

/// NVML, by SONAME.
pub(super) const LIBNVIDIA_ML: &str = "libnvidia-ml.so.1";

/// Without these no CUDA program starts; by SONAME.
pub(super) const REQUIRED: &[&str] = &[LIBCUDA, LIBNVIDIA_ML];

/// One of the driver's files, whatever its version.
#[derive(Debug)]
pub(super) struct Item {
    /// A library's name up to `.so`, any other file's whole name.
    pub(super) name: &'static str,
    pub(super) capability: Capability,
    pub(super) sort: Sort,
    /// The driver's branches that have it.
    pub(super) branches: RangeInclusive<u32>,
    /// What a container cannot do without it. Empty where nobody would miss it.
    pub(super) cost: &'static str,
}

/// What kind of file it is, and by that where it is looked for and put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sort {
    /// Loaded by its SONAME.
    Library(Version),
    /// A library that is loaded from this folder below the loader's.
    Plugin(&'static str),
    /// No library, but below the loader's folders too.
    Beside(&'static str),
    /// On the PATH.
    Program,
    /// A library or data at a place of its own: the host's folders, best first,
    /// and the container's.
    Fixed {
        host: &'static [&'static str],
        container: &'static [&'static str],
    },
}

/// What the end of a library's file name says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    /// The driver's version.
    Driver,
    /// In some branches a version of its own (470 has
    /// `libnvidia-nvvm.so.4.0.0`), or that of its interface: only what lies beside
    /// libcuda is this driver's.
    DriverOrOwn,
    /// Always one of its own: it fits many drivers.
    Own,
}

const ANY: RangeInclusive<u32> = 0..=u32::MAX;

const fn library(name: &'static str, capability: Capability, cost: &'static str) -> Item {
    Item {
        name,
        capability,
        sort: Sort::Library(Version::Driver),
        branches: ANY,
        cost,
    }
}

const fn program(name: &'static str, capability: Capability, cost: &'static str) -> Item {
    Item {
        name,
        capability,
        sort: Sort::Program,
        branches: ANY,
        cost,
    }
}

const fn fixed(
    name: &'static str,
    capability: Capability,
    [host, container]: [&'static [&'static str]; 2],
    cost: &'static str,
) -> Item {
    let sort = Sort::Fixed { host, container };
    Item {
        name,
        capability,
        sort,
        branches: ANY,
        cost,
    }
}

impl Item {
    const fn since(mut self, branch: u32) -> Self {
        self.branches = branch..=u32::MAX;
        self
    }

    const fn until(mut self, branch: u32) -> Self {
        self.branches = 0..=branch;
        self
    }

    const fn sort(mut self, sort: Sort) -> Self {
        self.sort = sort;
        self
    }
}

const VULKAN: &[&str] = &["usr/share/vulkan/icd.d", "etc/vulkan/icd.d", "vulkan/icd.d"];
const VULKAN_LAYERS: &[&str] = &[
    "usr/share/vulkan/implicit_layer.d",
    "etc/vulkan/implicit_layer.d",
];
const EGL: &[&str] = &["usr/share/glvnd/egl_vendor.d", "etc/glvnd/egl_vendor.d"];
const EGL_PLATFORMS: [&[&str]; 2] = [
    &[
        "usr/share/egl/egl_external_platform.d",
        "etc/egl/egl_external_platform.d",
    ],
    &["/usr/share/egl/egl_external_platform.d"],
];
const XORG_CONF: [&[&str]; 2] = [
    &["usr/share/X11/xorg.conf.d", "etc/X11/xorg.conf.d"],
    &["/usr/share/X11/xorg.conf.d"],
];
const XORG_DRIVERS: [&[&str]; 2] = [
    &[
        "usr/lib/xorg/modules/drivers",
        "usr/lib64/xorg/modules/drivers",
    ],
    &[
        "/usr/lib/xorg/modules/drivers",
        "/usr/lib64/xorg/modules/drivers",
    ],
];
const XORG_EXTENSIONS: [&[&str]; 2] = [
    &[
        "usr/lib/xorg/modules/extensions",
        "usr/lib64/xorg/modules/extensions",
    ],
    &[
        "/usr/lib/xorg/modules/extensions",
        "/usr/lib64/xorg/modules/extensions",
    ],
];

/// All of them. No branch of the driver has all.
pub(super) static ITEMS: &[Item] = &[
    library("libcuda", Compute, "no CUDA program starts"),
    library(
        "libcudadebugger",
        Compute,
        "cuda-gdb and the debugger of Nsight do not work",
    )
    .since(515),
    library("libnvidia-opencl", Compute, "no OpenCL"),
    library(
        "libnvidia-gpucomp",
        Compute,
        "kernels that are compiled when a program runs, and all of OpenGL and Vulkan, fail",
    )
    .since(545),
    library(
        "libnvidia-ptxjitcompiler",
        Compute,
        "programs without code for this very GPU (PTX only) do not start",
    ),
    library(
        "libnvidia-fatbinaryloader",
        Compute,
        "no CUDA program starts",
    )
    .until(440),
    library("libnvidia-allocator", Compute, ""),
    library("libnvidia-compiler", Compute, "no OpenCL").until(470),
    library("libnvidia-pkcs11", Compute, "").since(530),
    library("libnvidia-pkcs11-openssl3", Compute, "").since(530),
    library(
        "libnvidia-nvvm",
        Compute,
        "OpenCL, and linking of device code when a program runs (LTO), fail",
    )
    .sort(Sort::Library(Version::DriverOrOwn))
    .since(455),
    library("libnvidia-nvvm70", Compute, "").sort(Sort::Library(Version::DriverOrOwn)),
    library("libnvidia-tileiras", Compute, "").since(590),
    program(
        "nvidia-cuda-mps-control",
        Compute,
        "no MPS daemon can be started in a container",
    ),
    program(
        "nvidia-cuda-mps-server",
        Compute,
        "no MPS daemon can be started in a container",
    ),
    fixed(
        "nvidia.icd",
        Compute,
        [&["etc/OpenCL/vendors"], &["/etc/OpenCL/vendors"]],
        "OpenCL does not find the GPU, unless the image has this file",
    ),
    library(
        "libnvidia-ml",
        Utility,
        "nothing that watches GPUs works, nor does most of what computes",
    ),
    library("libnvidia-cfg", Utility, ""),
    library("libnvidia-nscq", Utility, ""),
    library("libnvidia-sandboxutils", Utility, "").since(555),
    program(
        "nvidia-smi",
        Utility,
        "there is no nvidia-smi in containers",
    ),
    program("nvidia-debugdump", Utility, ""),
    program("nvidia-persistenced", Utility, ""),
    library("libnvidia-encode", Video, "no encoding of video (NVENC)"),
    library("libnvcuvid", Video, "no decoding of video (NVDEC)"),
    library("libnvidia-opticalflow", Video, "no optical flow").since(410),
    library("libvdpau_nvidia", Video, "no VDPAU").sort(Sort::Plugin("vdpau")),
    library("libnvidia-eglcore", Graphics, "no EGL"),
    library("libnvidia-glcore", Graphics, "no OpenGL, no Vulkan"),
    library("libnvidia-tls", Graphics, "no OpenGL, no Vulkan"),
    library("libnvidia-glsi", Graphics, "no OpenGL, no EGL"),
    library(
        "libnvidia-fbc",
        Graphics,
        "no capture of the screen (NvFBC)",
    ),
    library("libnvidia-ifr", Graphics, "").until(470),
    library("libnvidia-rtcore", Graphics, "no ray tracing").since(410),
    library("libnvidia-glvkspirv", Graphics, "no Vulkan shaders"),
    library("libnvidia-cbl", Graphics, "").until(470),
    library("libnvoptix", Graphics, "no OptiX").since(410),
    library("libGLX_nvidia", Graphics, "no OpenGL under X, no Vulkan"),
    library("libEGL_nvidia", Graphics, "no EGL"),
    library("libGLESv2_nvidia", Graphics, "no OpenGL ES 2 and 3"),
    library("libGLESv1_CM_nvidia", Graphics, ""),
    library("libnvidia-present", Graphics, "").since(570),
    library("libnvidia-vksc-core", Graphics, "").since(555),
    library("libnvidia-api", Graphics, "").sort(Sort::Library(Version::DriverOrOwn)),
    // It has no SONAME: the others load it by this name, without a version.
    library("libnvidia-vulkan-producer", Graphics, "").sort(Sort::Plugin("")),
    library("libnvidia-egl-gbm", Graphics, "").sort(Sort::Library(Version::Own)),
    library("libnvidia-egl-wayland", Graphics, "").sort(Sort::Library(Version::Own)),
    library("libnvidia-egl-wayland2", Graphics, "").sort(Sort::Library(Version::Own)),
    library("libnvidia-egl-xcb", Graphics, "").sort(Sort::Library(Version::Own)),
    library("libnvidia-egl-xlib", Graphics, "").sort(Sort::Library(Version::Own)),
    library("nvidia-drm_gbm", Graphics, "").sort(Sort::Plugin("gbm")),
    fixed(
        "nvidia_icd.json",
        Graphics,
        [VULKAN, &["/etc/vulkan/icd.d"]],
        "",
    ),
    fixed(
        "nvidia_icd.x86_64.json",
        Graphics,
        [VULKAN, &["/etc/vulkan/icd.d"]],
        "",
    ),
    fixed(
        "nvidia_icd.aarch64.json",
        Graphics,
        [VULKAN, &["/etc/vulkan/icd.d"]],
        "",
    ),
    fixed(
        "nvidia_layers.json",
        Graphics,
        [VULKAN_LAYERS, &["/etc/vulkan/implicit_layer.d"]],
        "",
    ),
    fixed(
        "10_nvidia.json",
        Graphics,
        [EGL, &["/usr/share/glvnd/egl_vendor.d"]],
        "EGL does not find the GPU, unless the image has this file",
    ),
    fixed("15_nvidia_gbm.json", Graphics, EGL_PLATFORMS, ""),
    fixed("10_nvidia_wayland.json", Graphics, EGL_PLATFORMS, ""),
    fixed("09_nvidia_wayland2.json", Graphics, EGL_PLATFORMS, ""),
    fixed("20_nvidia_xcb.json", Graphics, EGL_PLATFORMS, ""),
    fixed("20_nvidia_xlib.json", Graphics, EGL_PLATFORMS, ""),
    fixed(
        "nvoptix.bin",
        Graphics,
        [
            &["usr/share/nvidia", "usr/local/share/nvidia"],
            &["/usr/share/nvidia"],
        ],
        "OptiX denoises slowly or not at all",
    )
    .since(525),
    fixed(
        "nvidia_drv.so",
        Display,
        XORG_DRIVERS,
        "no X server on the GPU in a container",
    ),
    fixed(
        "libglxserver_nvidia.so",
        Display,
        XORG_EXTENSIONS,
        "an X server in a container has no OpenGL",
    ),
    fixed("nvidia-drm-outputclass.conf", Display, XORG_CONF, ""),
    fixed("10-nvidia.conf", Display, XORG_CONF, ""),
    library("libnvidia-ngx", Ngx, "no DLSS"),
    program("nvidia-ngx-updater", Ngx, ""),
    Item {
        name: "nvngx.dll",
        capability: Ngx,
        sort: Sort::Beside("nvidia/wine"),
        branches: 470..=u32::MAX,
        cost: "no DLSS under Wine",
    },
    Item {
        name: "_nvngx.dll",
        capability: Ngx,
        sort: Sort::Beside("nvidia/wine"),
        branches: 470..=u32::MAX,
        cost: "no DLSS under Wine",
    },
    Item {
        name: "nvngx_dlssg.dll",
        capability: Ngx,
        sort: Sort::Beside("nvidia/wine"),
        branches: 570..=u32::MAX,
        cost: "",
    },
];

/// Libraries of OpenGL's vendor-neutral dispatch, or of another vendor: NVIDIA's
/// installer brings copies, and every image that uses them has its own.
pub(super) const NEUTRAL: &[&str] = &[
    "libGL",
    "libEGL",
    "libGLX",
    "libGLESv1_CM",
    "libGLESv2",
    "libOpenGL",
    "libGLdispatch",
    "libGLX_mesa",
    "libEGL_mesa",
    "libGLX_indirect",
];

/// The C library of an image, and what comes with its compiler. No image of a
/// program that uses the driver is without.
pub(super) fn is_of_the_image(soname: &str) -> bool {
    const SONAMES: &[&str] = &[
        "libc.so.6",
        "libm.so.6",
        "libdl.so.2",
        "libpthread.so.0",
        "librt.so.1",
        "libutil.so.1",
        "libgcc_s.so.1",
        "ld-linux-x86-64.so.2",
        "ld-linux-aarch64.so.1",
    ];
    SONAMES.contains(&soname)
}

/// Whether a library of this name is the driver's to bring.
pub(super) fn is_of_the_driver(soname: &str) -> bool {
    let stem = soname.split_once(".so").map_or(soname, |(stem, _)| stem);
    ITEMS.iter().any(|item| item.name == stem)
}

/// The branch of a driver's version: `550` of `550.163.01`.
pub(super) fn branch(version: &str) -> u32 {
    let first = version.split('.').next();
    first.and_then(|text| text.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_file_is_listed_once() {
        for (at, item) in ITEMS.iter().enumerate() {
            let again = ITEMS
                .iter()
                .skip(at + 1)
                .any(|other| other.name == item.name);
            assert!(!again, "{}", item.name);
            assert!(!NEUTRAL.contains(&item.name), "{}", item.name);
        }
    }

    #[test]
    fn libraries_are_the_drivers_the_images_or_neither() {
        assert!(is_of_the_driver("libnvidia-gpucomp.so.550.163.01"));
        assert!(is_of_the_driver(LIBCUDA));
        assert!(!is_of_the_driver("libX11.so.6"));
        assert!(is_of_the_image("libc.so.6"));
        assert!(!is_of_the_image("libcrypto.so.3"));
        assert_eq!(branch("550.163.01"), 550);
        assert_eq!(branch("x"), 0);
    }
}
