//! Finds kernel modules and the modules that they need, in the order of loading.
//!
//! Each module names its own needs in its `.modinfo` section, so that no index made by `depmod` is necessary.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The modules under one `lib/modules/VERSION` directory.
#[derive(Debug)]
pub(crate) struct Modules {
    /// By name, with `_` where the file name may have `-`.
    paths: BTreeMap<String, PathBuf>,
}

impl Modules {
    /// Looks for modules below `directory`.
    pub(crate) fn below(directory: &Path) -> Result<Self> {
        let mut paths = BTreeMap::new();
        let mut unvisited = vec![directory.to_owned()];
        while let Some(directory) = unvisited.pop() {
            for entry in
                fs::read_dir(&directory).with_context(|| directory.display().to_string())?
            {
                let entry = entry?;
                let path = entry.path();
                if entry.file_type()?.is_dir() {
                    unvisited.push(path);
                } else if let Some(name) = entry.file_name().to_string_lossy().strip_suffix(".ko") {
                    paths.insert(name.replace('-', "_"), path);
                }
            }
        }
        Ok(Self { paths })
    }

    /// The files of `names` and of everything that they need, each after what it needs.
    pub(crate) fn with_needs(&self, names: &[&str]) -> Result<Vec<(String, Vec<u8>)>> {
        let mut ordered = Vec::new();
        let mut seen = BTreeSet::new();
        for name in names {
            self.visit(name, &mut seen, &mut ordered)?;
        }
        Ok(ordered)
    }

    fn visit(
        &self,
        name: &str,
        seen: &mut BTreeSet<String>,
        ordered: &mut Vec<(String, Vec<u8>)>,
    ) -> Result<()> {
        let name = name.replace('-', "_");
        if !seen.insert(name.clone()) {
            return Ok(());
        }
        let path = self
            .paths
            .get(&name)
            .with_context(|| format!("the kernel package has no module {name}"))?;
        let content = fs::read(path)?;
        for need in needs(&content) {
            self.visit(&need, seen, ordered)?;
        }
        ordered.push((name, content));
        Ok(())
    }
}

/// The modules that `.modinfo` names as needed: zero-terminated `key=value` strings, of which one is `depends=a,b`.
fn needs(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = module.windows(KEY.len()).position(|window| window == KEY) else {
        return Vec::new();
    };
    let value = &module[at + KEY.len()..];
    let end = value
        .iter()
        .position(|&byte| byte == 0)
        .unwrap_or(value.len());
    let names = String::from_utf8_lossy(&value[..end]).into_owned();
    names
        .split(',')
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_comes_after_everything_it_needs() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let module = |name: &str, needs: &str| {
            let content = format!("\x7fELF\0license=GPL\0depends={needs}\0name={name}\0");
            fs::create_dir_all(directory.path().join("kernel/net")).expect("create");
            fs::write(
                directory.path().join(format!("kernel/net/{name}.ko")),
                content,
            )
            .expect("write");
        };
        module("rdma_rxe", "ib_core,udp_tunnel");
        module("ib_core", "");
        module("udp-tunnel", "ib_core");
        module("unrelated", "");
        let modules = Modules::below(directory.path()).expect("readable");
        let order = |names: &[&str]| -> Vec<String> {
            modules
                .with_needs(names)
                .expect("all there")
                .into_iter()
                .map(|(name, _)| name)
                .collect()
        };
        assert_eq!(
            order(&["rdma_rxe", "ib_core"]),
            ["ib_core", "udp_tunnel", "rdma_rxe"]
        );
        assert!(modules.with_needs(&["absent"]).is_err());
    }
}
