//! Installs the programs that the tests drive, under `target/clients`: a Python environment with requests and botocore,
//! axios for Node, and where there is none yet, a proxy. What is there already for the same requirement files is left
//! alone.

use std::path::Path;

use anyhow::{Context, bail};

use crate::step::{command, repository, run, step, succeeds, target};

/// Installs what is missing.
pub(crate) fn install() -> anyhow::Result<()> {
    step("programs the tests call", programs)?;
    install_python()?;
    step("Node client", || {
        let files = ["node/package.json", "node/package-lock.json", "node/.npmrc"];
        unless_stamped("node", &files, node)
    })?;
    step("egress proxy", tinyproxy)
}

/// Only the Python environment.
pub(crate) fn install_python() -> anyhow::Result<()> {
    step("Python client", || {
        unless_stamped("venv", &["python/requirements.txt"], python)
    })
}

/// Debian's tinyproxy without its service: from the system, else into `target/clients` for whoever is not root.
fn tinyproxy() -> anyhow::Result<()> {
    const PACKAGE: &str = "tinyproxy-bin";
    let folder = target().join("clients/tinyproxy");
    let unpacked = folder.join("usr/bin/tinyproxy");
    if succeeds(&mut command("tinyproxy", &["-v"])) || succeeds(&mut command(&unpacked, &["-v"])) {
        return Ok(());
    }
    let user = command("id", &["--user"])
        .output()
        .context("cannot start id")?;
    if user.stdout.trim_ascii() == b"0" {
        let install = ["install", "--yes", "--no-install-recommends", PACKAGE];
        return run(&mut command("apt-get", &["update"]))
            .and_then(|()| run(&mut command("apt-get", &install)))
            .with_context(|| format!("install by hand: {PACKAGE}"));
    }
    std::fs::create_dir_all(&folder)?;
    run(command("apt-get", &["download", PACKAGE]).current_dir(&folder))
        .with_context(|| format!("install by hand: {PACKAGE}"))?;
    for file in std::fs::read_dir(&folder)? {
        let path = file?.path();
        if path.extension().is_some_and(|extension| extension == "deb") {
            run(command("dpkg-deb", &["--extract"]).arg(&path).arg(&folder))?;
            std::fs::remove_file(path)?;
        }
    }
    if !succeeds(&mut command(&unpacked, &["-v"])) {
        bail!(
            "{PACKAGE} was unpacked but {} does not start",
            unpacked.display()
        );
    }
    Ok(())
}

fn programs() -> anyhow::Result<()> {
    let mut missing = Vec::new();
    if !succeeds(&mut command("curl", &["--version"])) {
        missing.push("curl");
    }
    if !succeeds(&mut command("python3", &["-c", "import ensurepip, venv"])) {
        missing.push("python3-venv");
    }
    for (program, package) in [("node", "nodejs"), ("npm", "npm")] {
        if !succeeds(&mut command(program, &["--version"])) {
            missing.push(package);
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    let mut arguments = vec!["install", "--yes", "--no-install-recommends"];
    arguments.extend(&missing);
    run(&mut command("apt-get", &["update"]))
        .and_then(|()| run(&mut command("apt-get", &arguments)))
        .with_context(|| format!("install by hand: {}", missing.join(" ")))
}

/// Runs `install` into an empty folder `name`, unless it was done for files of the same content.
fn unless_stamped(
    name: &str,
    files: &[&str],
    install: impl FnOnce(&Path) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let sources = repository().join("tests/clients");
    let folder = target().join("clients").join(name);
    let stamp = folder.join(".installed-for");
    let mut wanted = String::new();
    for file in files {
        let path = sources.join(file);
        wanted += &std::fs::read_to_string(&path)
            .with_context(|| format!("cannot read {}", path.display()))?;
    }
    if std::fs::read_to_string(&stamp).is_ok_and(|installed| installed == wanted) {
        return Ok(());
    }
    if folder.exists() {
        std::fs::remove_dir_all(&folder)?;
    }
    std::fs::create_dir_all(&folder)?;
    install(&folder)?;
    std::fs::write(stamp, wanted)?;
    Ok(())
}

fn python(folder: &Path) -> anyhow::Result<()> {
    run(command("python3", &["-m", "venv"]).arg(folder))?;
    let python = folder.join("bin/python");
    let pip = [
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
    ];
    run(command(&python, &pip)
        .arg("--requirement")
        .arg(repository().join("tests/clients/python/requirements.txt")))?;
    if !succeeds(&mut command(&python, &["-c", "import requests, botocore"])) {
        bail!("requests and botocore were installed but cannot be imported");
    }
    Ok(())
}

fn node(folder: &Path) -> anyhow::Result<()> {
    let sources = repository().join("tests/clients/node");
    for file in ["package.json", "package-lock.json", ".npmrc"] {
        std::fs::copy(sources.join(file), folder.join(file))?;
    }
    let arguments = ["ci", "--no-audit", "--no-fund", "--ignore-scripts"];
    run(command("npm", &arguments).current_dir(folder))
}
