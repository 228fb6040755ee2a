//! Makes a function of the tests known to libraries that look for it by its name: see `src/fleet/randomness.rs`.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-link-arg=-Wl,--export-dynamic-symbol=getrandom");
}
