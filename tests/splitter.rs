//! Any bytes in any chunking give a log that a CRI reader turns back into the same bytes.

#[path = "support/cri.rs"]
mod cri;

const STAMP: &str = "2026-11-22T01:56:44.196214039+00:00";

#[test]
fn the_reader_reads_what_the_format_says() {
    let log = format!("{STAMP} stdout P a b\n{STAMP} stderr F \n{STAMP} stdout F  \r\0\n");
    let records = cri::records(log.as_bytes()).unwrap();
    assert_eq!(records.len(), 3);
    assert_eq!(cri::content(&records, "stdout"), b"a b \r\0\n");
    assert_eq!(cri::content(&records, "stderr"), b"\n");
}

#[test]
fn the_reader_refuses_what_is_not_the_format() {
    let torn = format!("{STAMP} stdout F a");
    let rows = [
        "\n",
        " stdout F a\n",
        "2026-11-22T01:56:44.196214039Z stdout F a\n",
        "2026-11-22T01:56:44.19621403+00:00 stdout F a\n",
        "2026-13-22T01:56:44.196214039+00:00 stdout F a\n",
        "2026-11-22T01:56:44.196214039+00:00 stdin F a\n",
        "2026-11-22T01:56:44.196214039+00:00 stdout X a\n",
        "2026-11-22T01:56:44.196214039+00:00 stdout F\n",
        "2026-11-22T01:56:44.196214039+00:00  stdout F a\n",
        &torn,
    ];
    for row in rows {
        assert!(cri::records(row.as_bytes()).is_err(), "{row:?}");
    }
}
