//! What NVIDIA's installer makes, and what is made with it.

use super::{Layout, Lists, decoys, distributions};
use crate::common::system::skip;
use crate::kit::{Kit, MULTIARCH, Part};
use crate::tree::Tree;

/// NVIDIA's .run on Debian or Ubuntu, over an older one, beside CUDA's toolkit.
/// Known from NVIDIA/nvidia-installer and from what siderolabs/extensions copies
/// together after it (nvidia-pkgs/production/pkg.yaml before 1.12).
pub const RUN: Layout = Layout::new("run", run, Lists::Every);

/// A driver container's root, which the host has at /run/nvidia/driver. Known
/// from NVIDIA/gpu-driver-container, ubuntu22.04/nvidia-driver.
pub const DRIVER_CONTAINER: Layout =
    Layout::new("driver-container", driver_container, Lists::Default);

/// The same, that folder given as the root.
pub const DRIVER_CONTAINERS_ROOT: Layout = Layout {
    root: "/run/nvidia/driver",
    ..DRIVER_CONTAINER
};

/// GKE's Container-Optimized OS. Known from cos/tools,
/// src/cmd/cos_gpu_installer/internal/installer/installer.go, and from GKE's
/// device plugin (container-engine-accelerators); `share` is assumed.
pub const COS: Layout = Layout::new("cos", cos, Lists::Newest);

/// Container-Optimized OS without GKE: the installer's own default.
pub const COS_WITHOUT_GKE: Layout = Layout {
    build: cos_without_gke,
    ..COS
};

/// A driver in one folder, as an image mounted there. Known from such a machine
/// (an H100, driver 580.159.04), but for the files that newer drivers lack.
pub const OWN_FOLDER: Layout = Layout::new("usr-local-nvidia", own_folder, Lists::Newest);

/// A folder that nobody knows but the loader's cache. Made up.
pub const CACHED: Layout = Layout::new("ld-so-cache", cached, Lists::Default);

/// A driver that was there before.
pub const OLD: &str = "460.32.03";

fn run(kit: &Kit, tree: &Tree) {
    distributions::merged(tree);
    installed(kit, tree);
    decoys::for_32_bits(kit, tree, "usr/lib/i386-linux-gnu");
    left_overs(tree);
    decoys::for_another_processor(kit, tree, MULTIARCH, "libnvidia-nscq");
    toolkit(tree);
}

/// What the installer itself puts there.
fn installed(kit: &Kit, tree: &Tree) {
    let firmware = format!("usr/lib/firmware/nvidia/{}", kit.version);
    let extensions = "usr/lib/xorg/modules/extensions";
    tree.parts(kit, Part::Library, MULTIARCH)
        .sonames(MULTIARCH)
        .dot_so(
            MULTIARCH,
            &["libnvcuvid", "libnvidia-allocator", "libnvidia-encode"],
        )
        .link(
            format!("{MULTIARCH}/gbm/nvidia-drm_gbm.so"),
            "../libnvidia-allocator.so.1",
        )
        .parts(kit, Part::Vdpau, &format!("{MULTIARCH}/vdpau"))
        .sonames(&format!("{MULTIARCH}/vdpau"))
        .link(
            format!("{MULTIARCH}/libvdpau_nvidia.so"),
            "vdpau/libvdpau_nvidia.so.1",
        )
        .parts(kit, Part::XDriver, "usr/lib/xorg/modules/drivers")
        .parts(kit, Part::XExtension, extensions)
        .link(
            format!("{extensions}/libglxserver_nvidia.so"),
            format!("libglxserver_nvidia.so.{}", kit.version),
        )
        .parts(kit, Part::XConfiguration, "usr/share/X11/xorg.conf.d")
        .parts(kit, Part::Wine, &format!("{MULTIARCH}/nvidia/wine"))
        .parts(kit, Part::Program, "usr/bin")
        .parts(kit, Part::Firmware, &firmware)
        .parts(kit, Part::OpenCl, "etc/OpenCL/vendors")
        .parts(kit, Part::VulkanIcd, "etc/vulkan/icd.d")
        .parts(kit, Part::VulkanLayer, "etc/vulkan/implicit_layer.d")
        .parts(kit, Part::EglVendor, "usr/share/glvnd/egl_vendor.d")
        .parts(
            kit,
            Part::EglPlatform,
            "usr/share/egl/egl_external_platform.d",
        )
        .parts(kit, Part::Optix, "usr/share/nvidia");
    decoys::glvnd(tree, MULTIARCH);
    tree.link(
        format!("{MULTIARCH}/libGLX_indirect.so.0"),
        "libGLX_nvidia.so.0",
    );
}

/// Of an older driver, not uninstalled: files, and links to what is gone.
fn left_overs(tree: &Tree) {
    for stem in ["libcuda", "libnvidia-ml", "libnvidia-fatbinaryloader"] {
        decoys::of_another_version(tree, MULTIARCH, stem, OLD);
    }
    tree.link(
        format!("{MULTIARCH}/libnvidia-opticalflow.so"),
        format!("libnvidia-opticalflow.so.{OLD}"),
    );
    tree.link(
        format!("{MULTIARCH}/libnvidia-fatbinaryloader.so"),
        format!("libnvidia-fatbinaryloader.so.{OLD}.gone"),
    );
    tree.write(
        format!("usr/lib/firmware/nvidia/{OLD}/gsp.bin"),
        "old firmware",
    );
    // The distribution's own programs were put aside by hand.
    tree.link("usr/sbin/nvidia-smi", "/opt/old/nvidia-smi");
}

/// CUDA's, with stubs for linking, and what users link to them.
fn toolkit(tree: &Tree) {
    let targets = format!("targets/{}-linux/lib", std::env::consts::ARCH);
    let stubs = format!("usr/local/cuda-12.4/{targets}/stubs");
    for stem in ["libcuda", "libnvidia-ml"] {
        let soname = format!("{stem}.so.1");
        tree.write(format!("{stubs}/{stem}.so"), decoys::stub(&soname));
    }
    tree.link("usr/local/cuda-12.4/lib64", targets)
        .link("usr/local/cuda", "cuda-12.4")
        .link(
            format!("{MULTIARCH}/libcuda.so"),
            "/usr/local/cuda/lib64/stubs/libcuda.so",
        )
        .write(
            format!("{MULTIARCH}/libnvidia-ml.so"),
            "/* GNU ld script */\nINPUT ( libnvidia-ml.so.1 )\n",
        );
}

fn driver_container(kit: &Kit, tree: &Tree) {
    let container = tree.below("run/nvidia/driver");
    distributions::merged(&container);
    installed(kit, &container);
    // The host once had a driver of its own.
    distributions::merged(tree);
    decoys::of_another_version(tree, MULTIARCH, "libcuda", OLD);
    tree.link(
        format!("{MULTIARCH}/libcuda.so.1"),
        format!("libcuda.so.{OLD}"),
    );
}

fn cos(kit: &Kit, tree: &Tree) {
    below_its_folder(kit, tree, "home/kubernetes/bin/nvidia");
}

fn cos_without_gke(kit: &Kit, tree: &Tree) {
    below_its_folder(kit, tree, "var/lib/nvidia");
}

fn below_its_folder(kit: &Kit, tree: &Tree, folder: &str) {
    let below = |sub: &str| format!("{folder}/{sub}");
    let lib64 = below("lib64");
    tree.parts(kit, Part::Library, &lib64)
        .sonames(&lib64)
        .link(
            below("lib64/gbm/nvidia-drm_gbm.so"),
            "../libnvidia-allocator.so.1",
        )
        .parts(kit, Part::Vdpau, &below("lib64/vdpau"))
        .sonames(&below("lib64/vdpau"))
        .parts(kit, Part::XDriver, &below("lib64/xorg/modules/drivers"))
        .parts(
            kit,
            Part::XExtension,
            &below("lib64/xorg/modules/extensions"),
        )
        .parts(kit, Part::Program, &below("bin"))
        .parts(
            kit,
            Part::Firmware,
            &below(&format!("firmware/nvidia/{}", kit.version)),
        )
        .parts(kit, Part::VulkanIcd, &below("vulkan/icd.d"))
        .parts(kit, Part::Optix, &below("share/nvidia"))
        .write(below("drivers/nvidia.ko"), "module")
        .folder(below("lib64-workdir/work"));
    decoys::glvnd(tree, &lib64);
    distributions::merged(tree);
    // The installer names its folder to the host's loader.
    cache(tree, "a node of Container-Optimized OS", &lib64);
}

/// The list is the same without the cache.
fn cache(tree: &Tree, node: &str, folder: &str) {
    if !tree.ldconfig("etc/ld.so.cache", &[&format!("/{folder}")]) {
        skip(
            node,
            "its loader's cache takes ldconfig, and root to run it",
        );
    }
}

fn own_folder(kit: &Kit, tree: &Tree) {
    let below = |sub: &str| format!("usr/local/nvidia/{sub}");
    let lib64 = below("lib64");
    let firmware = below(&format!("firmware/nvidia/{}", kit.version));
    tree.parts(kit, Part::Library, &lib64)
        .parts(kit, Part::Vdpau, &lib64)
        .sonames(&lib64)
        .dot_so(&lib64, &["libcuda", "libnvidia-ml", "libvdpau_nvidia"])
        .link(below("lib"), "lib64")
        .parts(kit, Part::Program, &below("bin"))
        .parts(kit, Part::Firmware, &firmware)
        .parts(kit, Part::VulkanIcd, &below("share/vulkan/icd.d"))
        .parts(
            kit,
            Part::VulkanLayer,
            &below("share/vulkan/implicit_layer.d"),
        )
        .parts(kit, Part::EglVendor, &below("share/glvnd/egl_vendor.d"))
        .link(
            "usr/share/glvnd/egl_vendor.d/10_nvidia.json",
            "/usr/local/nvidia/share/glvnd/egl_vendor.d/10_nvidia.json",
        )
        .write(below("version"), &kit.version)
        .write(below("glibc/libc.so.6"), decoys::stub("libc.so.6"))
        // Of another package, for another vendor.
        .write("etc/OpenCL/vendors/pocl.icd", "libpocl.so.2\n");
    cache(tree, "a driver in /usr/local/nvidia", &lib64);
}

fn cached(kit: &Kit, tree: &Tree) {
    let lib = "srv/gpu/driver/lib";
    distributions::merged(tree);
    tree.parts(kit, Part::Library, lib)
        .sonames(lib)
        .parts(kit, Part::Vdpau, "srv/gpu/driver/lib/vdpau")
        .parts(kit, Part::Program, "srv/gpu/driver/bin")
        .parts(kit, Part::OpenCl, "etc/OpenCL/vendors");
    // Without it, no driver is found: the test looks first.
    tree.ldconfig("etc/ld.so.cache", &["/srv/gpu/driver/lib"]);
}
