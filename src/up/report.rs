//! The table a person sees on standard output. Knows how to print, nothing else.

/// One row of the table.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Row {
    pub(crate) namespace: String,
    pub(crate) kind: String,
    pub(crate) name: String,
    pub(crate) status: String,
    pub(crate) address: String,
}

/// Rows under a heading, columns as wide as they must be.
pub(crate) fn table(rows: &[Row]) -> String {
    let heading = Row {
        namespace: "NAMESPACE".to_owned(),
        kind: "KIND".to_owned(),
        name: "NAME".to_owned(),
        status: "STATUS".to_owned(),
        address: "ADDRESS".to_owned(),
    };
    let rows: Vec<[&str; 5]> = std::iter::once(&heading)
        .chain(rows)
        .map(Row::cells)
        .collect();
    let width = |at: usize| {
        rows.iter()
            .map(|row| row[at].chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: [usize; 5] = std::array::from_fn(width);
    let lines = rows.iter().map(|row| {
        let cells = row
            .iter()
            .zip(widths)
            .map(|(cell, width)| format!("{cell:width$}"));
        cells.collect::<Vec<_>>().join("   ").trim_end().to_owned()
    });
    lines.collect::<Vec<_>>().join("\n")
}

// === impl Row ===

impl Row {
    fn cells(&self) -> [&str; 5] {
        [
            &self.namespace,
            &self.kind,
            &self.name,
            &self.status,
            &self.address,
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_lines_end_with_text() {
        let row = |name: &str, address: &str| Row {
            namespace: "default".to_owned(),
            kind: "Service".to_owned(),
            name: name.to_owned(),
            status: "listening".to_owned(),
            address: address.to_owned(),
        };
        let text = table(&[row("a", "http://127.0.0.1:80"), row("longer", "")]);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(
            lines[0],
            "NAMESPACE   KIND      NAME     STATUS      ADDRESS"
        );
        assert_eq!(
            lines[1],
            "default     Service   a        listening   http://127.0.0.1:80"
        );
        assert_eq!(lines[2], "default     Service   longer   listening");
    }
}
