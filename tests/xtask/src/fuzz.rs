//! The fuzz targets of `tests/fuzz`, each on a copy of its checked-in corpus, so that the tree stays as it is.
//!
//! cargo-fuzz builds them with the pinned stable toolchain: coverage feedback needs no sanitizer, and only those need a
//! nightly one. Everything is under `target/fuzz`; an input that fails stays in `target/fuzz/artifacts`.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, bail, ensure};

use crate::images::program::host;
use crate::step::{command, repository, run, step, succeeds, target};
use crate::tool;

const CARGO_FUZZ: &str = "0.13.2";
/// Targets that run at the same time; each has one thread.
const AT_ONCE: usize = 2;
/// In bytes. Longer ones are slower, and no step looks further than this in one go.
const LONGEST_INPUT: u32 = 2048;
/// One input may take so many seconds. They take microseconds.
const SLOW_INPUT: u32 = 10;
const MEMORY_MIB: u32 = 2048;

/// Runs the targets, all if none is named, for so many seconds each.
pub(crate) fn fuzz(seconds: u32, targets: &[String]) -> anyhow::Result<()> {
    let known = known_targets()?;
    if let Some(unknown) = targets.iter().find(|target| !known.contains(target)) {
        bail!(
            "{unknown} is no fuzz target; there are {}",
            known.join(", ")
        );
    }
    let targets = if targets.is_empty() { &known } else { targets };
    // Without it cargo-fuzz would build for the platform that it was itself built for, which may have another C library.
    let host = host()?;
    build(&host, targets)?;
    let binaries = target().join("fuzz").join(host).join("release");
    step(&format!("fuzz {}", targets.join(", ")), || {
        fuzz_each(&binaries, seconds, targets)
    })
}

fn source() -> PathBuf {
    repository().join("tests/fuzz")
}

fn known_targets() -> anyhow::Result<Vec<String>> {
    let mut names = Vec::new();
    for file in fs::read_dir(source().join("targets"))? {
        let path = file?.path();
        names.extend(path.file_stem().map(|stem| stem.display().to_string()));
    }
    names.sort();
    Ok(names)
}

fn build(host: &str, targets: &[String]) -> anyhow::Result<()> {
    step("C++ compiler for libFuzzer", || {
        if succeeds(&mut command("c++", &["--version"])) {
            return Ok(());
        }
        let install = ["install", "--yes", "--no-install-recommends", "g++"];
        run(&mut command("apt-get", &["update"]))
            .and_then(|()| run(&mut command("apt-get", &install)))
            .context("install a C++ compiler by hand")
    })?;
    let cargo_fuzz = tool::installed("cargo-fuzz", CARGO_FUZZ, &["--debug"])?;
    step("build the fuzz targets", || {
        // What is fuzzed is what is shipped: the same versions of everything.
        let lock = "Cargo.lock";
        fs::copy(repository().join(lock), source().join(lock))?;
        let mut build = command(&cargo_fuzz, &["build", "--sanitizer", "none"]);
        build
            .args(["--release", "--debug-assertions", "--codegen-units", "16"])
            // Crates that look for it behave otherwise than in the product.
            .arg("--no-cfg-fuzzing")
            .args(["--target", host, "--fuzz-dir"])
            .arg(source())
            .arg("--target-dir")
            .arg(target().join("fuzz"));
        if let [only] = targets {
            build.arg(only);
        }
        run(&mut build)
    })
}

/// Takes the next target as soon as one is done.
fn fuzz_each(binaries: &Path, seconds: u32, targets: &[String]) -> anyhow::Result<()> {
    let next = AtomicUsize::new(0);
    let failures = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some(name) = targets.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Err(error) = fuzz_one(binaries, seconds, name) {
                        let mut failures = failures.lock().unwrap_or_else(PoisonError::into_inner);
                        failures.push(format!("{name}: {error:#}"));
                    }
                }
            });
        }
    });
    let failures = failures
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner);
    ensure!(failures.is_empty(), "{}", failures.join("\n\n"));
    Ok(())
}

#[expect(clippy::print_stdout, reason = "a command line tool's output")]
fn fuzz_one(binaries: &Path, seconds: u32, name: &str) -> anyhow::Result<()> {
    let place = target().join("fuzz");
    let corpus = place.join("corpus").join(name);
    copy_corpus(&source().join("corpus").join(name), &corpus)?;
    let artifacts = place.join("artifacts").join(name);
    fs::create_dir_all(&artifacts)?;
    let log = place.join(format!("{name}.log"));
    let binary = binaries.join(name);
    let mut fuzz = Command::new(&binary);
    fuzz.arg(format!("-max_total_time={seconds}"))
        .arg(format!("-max_len={LONGEST_INPUT}"))
        .arg(format!("-timeout={SLOW_INPUT}"))
        .arg(format!("-rss_limit_mb={MEMORY_MIB}"))
        .arg(format!("-artifact_prefix={}/", artifacts.display()));
    let dictionary = source().join(format!("dictionaries/{name}.dict"));
    if dictionary.exists() {
        fuzz.arg(format!("-dict={}", dictionary.display()));
    }
    let status = fuzz
        .arg(&corpus)
        .stdout(File::create(&log)?)
        .stderr(File::options().append(true).open(&log)?)
        .status()
        .with_context(|| format!("cannot start {}", binary.display()))?;
    let said = String::from_utf8_lossy(&fs::read(&log)?).into_owned();
    if !status.success() {
        let input = said
            .lines()
            .find_map(|line| line.split_once("Test unit written to "))
            .map_or("(none was written)", |(_, path)| path.trim());
        bail!(
            "ended with {status}\n{}\nthe input: {input}\nto run it again: {} {input}",
            reason(&said),
            binary.display()
        );
    }
    let (Some(first), Some(last)) = (progress(&said, "INITED"), progress(&said, "DONE")) else {
        bail!("says nothing of its coverage; see {}", log.display());
    };
    ensure!(
        last.coverage > 0,
        "has no coverage feedback; see {}",
        log.display()
    );
    println!(
        "    {name}: {} inputs, coverage {} (corpus) to {}",
        last.runs, first.coverage, last.coverage
    );
    Ok(())
}

fn copy_corpus(from: &Path, to: &Path) -> anyhow::Result<()> {
    if to.exists() {
        fs::remove_dir_all(to)?;
    }
    fs::create_dir_all(to)?;
    for seed in fs::read_dir(from).with_context(|| format!("cannot read {}", from.display()))? {
        let seed = seed?;
        fs::copy(seed.path(), to.join(seed.file_name()))?;
    }
    Ok(())
}

/// What failed: the panic's message, else the end of what was said.
fn reason(said: &str) -> String {
    let lines: Vec<&str> = said.lines().collect();
    let panic = lines.iter().position(|line| line.contains(" panicked at "));
    let from = panic.unwrap_or(lines.len().saturating_sub(20));
    lines[from..]
        .iter()
        .take(20)
        .fold(String::new(), |text, line| text + line + "\n")
}

/// A line of libFuzzer's about how far it is.
struct Progress {
    runs: u64,
    coverage: u64,
}

/// The last line of this kind, such as `#1034  DONE  cov: 871 ft: 2710 corp: ...`.
fn progress(said: &str, kind: &str) -> Option<Progress> {
    said.lines().rev().find_map(|line| {
        let mut words = line.strip_prefix('#')?.split_whitespace();
        let runs = words.next()?.parse().ok()?;
        if words.next()? != kind {
            return None;
        }
        let coverage = words.skip_while(|word| *word != "cov:").nth(1);
        // It leaves out what is zero.
        let coverage = coverage.map_or(Some(0), |text| text.parse().ok())?;
        Some(Progress { runs, coverage })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_read_from_what_libfuzzer_says() {
        let said = "INFO: seed corpus: files: 2\n#3\tINITED cov: 871 ft: 1203 corp: 2/55b exec/s: 0 rss: 61Mb\n#900\tNEW    cov: 880 ft: 1\n#1034\tDONE   cov: 902 ft: 2710 corp: 9/1b\nDone 1034 runs in 2 second(s)\n";
        let coverage = |kind| progress(said, kind).map(|it| (it.runs, it.coverage));
        assert_eq!(coverage("INITED"), Some((3, 871)));
        assert_eq!(coverage("DONE"), Some((1034, 902)));
        assert_eq!(coverage("REDUCE"), None);
        let blind = progress("#2\tINITED exec/s: 0 rss: 29Mb", "INITED");
        assert_eq!(blind.map(|it| it.coverage), Some(0));
    }

    #[test]
    fn every_target_is_built_and_has_a_corpus() {
        let manifest = fs::read_to_string(source().join("Cargo.toml")).unwrap();
        let targets = known_targets().unwrap();
        assert!(!targets.is_empty());
        for target in targets {
            assert!(manifest.contains(&format!("path = \"targets/{target}.rs\"")));
            let corpus = source().join("corpus").join(&target);
            assert!(fs::read_dir(corpus).unwrap().next().is_some(), "{target}");
        }
    }
}
