//! How commands print: tables for people, JSON and YAML for programs.

use anyhow::Result;
use serde_json::Value;

/// Prints a line to standard output. A reader that has seen enough (`maille get pods | head`) ends
/// the program quietly, as it should.
macro_rules! out {
    ($($argument:tt)*) => {
        $crate::output::write_out(&format!("{}\n", format_args!($($argument)*)))
    };
}
pub(crate) use out;

/// Writes to standard output; see [`out!`].
pub(crate) fn write_out(text: &str) {
    use std::io::Write;
    let mut stdout = std::io::stdout().lock();
    if let Err(error) = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        let quiet = error.kind() == std::io::ErrorKind::BrokenPipe;
        if !quiet {
            eprintln!("maille: cannot write to standard output: {error}");
        }
        std::process::exit(if quiet { 0 } else { 2 });
    }
}

/// Form of the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// JSON.
    Json,
    /// YAML.
    Yaml,
    /// `kind/name`, a line each.
    Name,
    /// A table with more columns.
    Wide,
}

/// Whether people look at standard output and want colour.
pub(crate) fn colour() -> bool {
    use std::io::IsTerminal;
    std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()) && std::io::stdout().is_terminal()
}

/// Prints a value as `format` says.
pub(crate) fn print_value(value: &Value, format: Format) -> Result<()> {
    match format {
        Format::Json | Format::Wide => out!("{}", serde_json::to_string_pretty(value)?),
        Format::Yaml => write_out(&serde_saphyr::to_string(value)?),
        Format::Name => {
            for object in
                value["items"].as_array().map_or_else(|| vec![value], |items| items.iter().collect())
            {
                let kind = object["kind"].as_str().unwrap_or_default().to_ascii_lowercase();
                out!("{kind}/{}", object["metadata"]["name"].as_str().unwrap_or_default());
            }
        }
    }
    Ok(())
}

/// Prints a Kubernetes Table: columns of priority 0, or all of them.
pub(crate) fn print_table(table: &Value, wide: bool, with_namespace: bool) {
    let empty = Vec::new();
    let columns = table["columnDefinitions"].as_array().unwrap_or(&empty);
    let shown: Vec<usize> = columns
        .iter()
        .enumerate()
        .filter(|(_, column)| wide || column["priority"].as_i64().unwrap_or(0) == 0)
        .map(|(index, _)| index)
        .collect();
    let mut lines = Vec::new();
    let mut header: Vec<String> = shown
        .iter()
        .filter_map(|index| columns.get(*index))
        .map(|column| column["name"].as_str().unwrap_or_default().to_uppercase())
        .collect();
    if with_namespace {
        header.insert(0, "NAMESPACE".to_owned());
    }
    lines.push(header);
    for row in table["rows"].as_array().unwrap_or(&empty) {
        let mut cells: Vec<String> = shown.iter().map(|index| cell(&row["cells"][*index])).collect();
        if with_namespace {
            cells.insert(0, cell(&row["object"]["metadata"]["namespace"]));
        }
        lines.push(cells);
    }
    write_out(&aligned(&lines));
}

fn cell(value: &Value) -> String {
    match value {
        Value::Null => "<none>".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// Lines of cells as columns three blanks apart, as kubectl aligns them.
pub(crate) fn aligned(lines: &[Vec<String>]) -> String {
    let columns = lines.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        lines.iter().filter_map(|line| line.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for line in lines {
        let mut row = String::new();
        for (cell, width) in line.iter().zip(&widths) {
            row.push_str(&format!("{cell:<width$}   "));
        }
        text.push_str(row.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let line = |a: &str, b: &str| vec![a.to_owned(), b.to_owned()];
        assert_eq!(aligned(&[line("NAME", "AGE"), line("payment", "3s")]), "NAME      AGE\npayment   3s\n");
    }
}
