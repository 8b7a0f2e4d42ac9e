//! Objects in files and folders.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use maille_config::Diagnostic;
use maille_config::yaml::{self, Document};

/// What files hold.
#[derive(Default)]
pub(crate) struct Files {
    /// Their objects, in order.
    pub(crate) documents: Vec<Document>,
    /// Why some could not be read.
    pub(crate) diagnostics: Vec<Diagnostic>,
    /// How many could not.
    pub(crate) unreadable: usize,
}

/// Reads files, folders with all that is in them, and standard input for `-`. What is neither YAML nor JSON by its name
/// is left out, and told on standard error.
pub(crate) fn read(names: &[PathBuf]) -> Result<Files> {
    let mut files = Files::default();
    for name in names {
        if name == Path::new("-") {
            let text = std::io::read_to_string(std::io::stdin()).context("cannot read standard input")?;
            files.add("-", &text);
        } else if name.is_dir() {
            files.read_folder(name)?;
        } else {
            files.read_file(name)?;
        }
    }
    Ok(files)
}

impl Files {
    fn read_folder(&mut self, folder: &Path) -> Result<()> {
        let failed = || format!("cannot read {}", folder.display());
        let entries = std::fs::read_dir(folder).with_context(failed)?;
        let mut paths = Vec::new();
        for entry in entries {
            let entry = entry.with_context(failed)?;
            // Links are not followed into other folders: they may lead back.
            let is_folder = entry.file_type().with_context(failed)?.is_dir();
            paths.push((entry.path(), is_folder));
        }
        paths.sort();
        for (path, is_folder) in paths {
            if is_folder {
                self.read_folder(&path)?;
            } else if path.is_file() {
                self.read_file(&path)?;
            }
        }
        Ok(())
    }

    fn read_file(&mut self, path: &Path) -> Result<()> {
        let extension = path.extension().and_then(|extension| extension.to_str());
        if !matches!(extension, Some("yaml" | "yml" | "json")) {
            eprintln!("Skipping file {}, recognized file extensions are: [.json .yaml .yml]", path.display());
            return Ok(());
        }
        let text =
            std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        self.add(&path.display().to_string(), &text);
        Ok(())
    }

    fn add(&mut self, name: &str, text: &str) {
        match yaml::parse(name, text) {
            Ok(mut documents) => self.documents.append(&mut documents),
            Err(mut diagnostics) => {
                self.unreadable += 1;
                self.diagnostics.append(&mut diagnostics);
            }
        }
    }
}
