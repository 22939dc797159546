//! What users write, on a real report.

#![allow(clippy::unwrap_used)]

use super::super::golden;
use super::*;

fn render(format: &str, scenario: &str) -> Result<String, String> {
    render_within(exec::BUDGET, format, scenario)
}

fn render_within(budget: usize, format: &str, scenario: &str) -> Result<String, String> {
    let json = golden::text(&format!("{scenario}.report.json"));
    let template = Template::parse(format).map_err(|e| e.to_string())?;
    template.render_json(&json, budget).map_err(|e| e.to_string())
}

#[test]
fn the_recorded_format_gives_the_recorded_text() {
    let format = "{{.Version}} {{json .Router.Name}} {{range .Router.Peers}}{{.Name}} {{.NickName}} {{.UID}} \
                  {{.ShortID}} {{.Version}};{{end}}";
    for scenario in golden::SCENARIOS {
        let theirs = golden::text(&format!("{scenario}.report_format.txt"));
        // The order of peers differs from request to request.
        let parts = |t: &str| {
            let mut parts: Vec<String> = t.split([' ', ';']).map(str::to_owned).collect();
            parts.sort();
            parts
        };
        assert_eq!(
            parts(&render(format, scenario).unwrap()),
            parts(&theirs),
            "{scenario}"
        );
    }
}

#[test]
fn constructs() {
    for (format, shown) in [
        ("plain } text", "plain } text"),
        ("{{.Router.Name}}", "7a:00:00:00:00:01"),
        ("{{ .Ready }}/{{.Router.Port}}", "true/6783"),
        ("a {{- /* no */ -}} b", "ab"),
        ("{{/* c */}}x", "x"),
        ("a {{- 1 -}} b{{ -1 }}", "a1b-1"),
        (
            "{{\"q\\n\\u00e9\"}}{{`r\\n`}}{{'a'}}{{1.5}}{{0x10}}",
            "q\né r\\n97 1.5 16".replace(' ', "").as_str(),
        ),
        (
            "{{len .Router.Peers}} {{len .Router.Targets}} {{len \"abc\"}}",
            "3 0 3",
        ),
        ("{{range .Router.Targets}}x{{else}}none{{end}}", "none"),
        (
            "{{range $i, $p := .Router.Peers}}{{if $i}},{{end}}{{$p.NickName}}{{end}}",
            "host1,host2,host3",
        ),
        (
            "{{range $p := .Router.Peers}}{{.ShortID}}={{$p.ShortID}}={{$.Router.Port}} {{end}}",
            "3369=3369=6783 655=655=6783 647=647=6783 ",
        ),
        (
            "{{range $k, $v := .Router.CaptureStats}}{{$k}};{{end}}",
            "PacketsDropped;PacketsIfDropped;PacketsReceived;",
        ),
        (
            "{{range .Router.Peers}}{{if eq .NickName \"host2\"}}{{break}}{{end}}{{.NickName}}{{end}}",
            "host1",
        ),
        (
            "{{range .Router.Peers}}{{if eq .NickName \"host2\"}}{{continue}}{{end}}{{.NickName}}{{end}}",
            "host1host3",
        ),
        ("{{with .Router}}{{.NickName}}{{end}}", "host1"),
        ("{{with .Router.Targets}}x{{else}}none{{end}}", "none"),
        (
            "{{if .IPAM.Paxos}}a{{else if .IPAM.Entries}}b{{else}}c{{end}}",
            "b",
        ),
        ("{{if and .Ready (gt .IPAM.ActiveIPs 0)}}busy{{end}}", "busy"),
        ("{{or \"\" \"x\"}}{{and 1 0}}{{not true}}", "x0false"),
        (
            "{{eq 3 1 2 3}}{{ne 1 2}}{{lt \"a\" \"b\"}}{{le 2 2}}{{gt 1.5 2.5}}{{ge 1 2}}",
            "truetruetruetruefalsefalse",
        ),
        ("{{$x := 1}}{{if true}}{{$x = 2}}{{end}}{{$x}}", "2"),
        ("{{(index .Router.Peers 1).NickName}}", "host2"),
        ("{{index .Router.CaptureStats \"PacketsDropped\"}}", "0"),
        (
            "{{range .Router.Connections}}{{.Attrs.encrypted}}{{if .Attrs.encrypted}}!{{end}}{{.Attrs.mtu}} {{end}}",
            "<no value>1438 <no value>1438 ",
        ),
        (
            "{{.Router.Name | printf \"%s %q\" \"n\"}}",
            "n \"7a:00:00:00:00:01\"",
        ),
        (
            "{{printf \"%d|%4d|%-4d|%04d|%v|%t|%6.2f|%s|%%\" 1 2 3 4 \"v\" true 1.0 \"s\"}}",
            "1|   2|3   |0004|v|true|  1.00|s|%",
        ),
        ("{{printf \"%d %s\" \"x\"}}", "%!d(string=x) %!s(MISSING)"),
        (
            "{{print 1 2 \"a\" \"b\" 3}}{{println 1 \"a\"}}",
            "1 2ab3 1 a\n".replace("b3 ", "b3").as_str(),
        ),
        (
            "{{json .VersionCheck}}",
            "{\"Enabled\":false,\"Success\":false,\"NewVersion\":\"\",\"NextCheckAt\":\"0001-01-01T00:00:00Z\"}",
        ),
        (
            "{{json .Router.Targets}}{{json .Router.TrustedSubnets}}{{json \"<\"}}",
            "null[]\"\\u003c\"",
        ),
        (
            "{{.Router.Targets}}{{.Router.OverlayDiagnostics}}",
            "[]map[sleeve:<nil>]",
        ),
        ("{{len .DNS.Entries}}\n", "3\n"),
    ] {
        assert_eq!(
            render(format, "04-three-dns.h1"),
            Ok(shown.to_owned()),
            "{format}"
        );
    }
}

#[test]
fn what_cannot_be_read() {
    for (format, error) in [
        ("{{", "template: format:1: unclosed action"),
        ("a\nb{{.A", "template: format:2: unclosed action"),
        ("{{\n}}x", "template: format:1: missing value for command"),
        (
            "{{1\n}}\n{{/*\n*/}}{{$x}}",
            "template: format:4: undefined variable \"$x\"",
        ),
        ("{{}}", "template: format:1: missing value for command"),
        (
            "{{if .A}}",
            "template: format:1: unclosed action: {{end}} is missing",
        ),
        ("{{end}}", "template: format:1: unexpected {{end}}"),
        ("{{else}}", "template: format:1: unexpected {{else}}"),
        ("{{nope .A}}", "template: format:1: function \"nope\" not defined"),
        ("{{$x}}", "template: format:1: undefined variable \"$x\""),
        (
            "{{if $x := 1}}{{end}}{{$x}}",
            "template: format:1: undefined variable \"$x\"",
        ),
        ("{{\"a}}", "template: format:1: unterminated quoted string"),
        ("{{(len .A}}", "template: format:1: unclosed left paren"),
        (
            "{{1 2}}",
            "template: format:1: can't give argument to non-function",
        ),
        (
            "{{1 | 2}}",
            "template: format:1: non executable command in pipeline",
        ),
        ("{{break}}", "template: format:1: {{break}} outside {{range}}"),
        ("{{/* a }}", "template: format:1: unclosed comment"),
        (
            "{{template \"x\"}}",
            "template: format:1: {{template}} is not supported in report formats",
        ),
        ("{{.A..B}}", "template: format:1: unexpected . after term"),
        ("{{12a}}", "template: format:1: bad number syntax: \"12a\""),
    ] {
        assert_eq!(
            render(format, "01-single-idle.h1"),
            Err(error.to_owned()),
            "{format}"
        );
    }
    for format in ["%x %X", "%#v", "%c", "%e"] {
        let error = render(&format!("{{{{printf {format:?} 1 2}}}}"), "01-single-idle.h1").unwrap_err();
        assert!(
            error.ends_with(" is not supported in report formats"),
            "{format}: {error}"
        );
    }
    let deep = "{{if 1}}".repeat(100_000);
    assert!(Template::parse(&deep).is_err());
    let deep = format!("{{{{{}", "(".repeat(100_000));
    assert!(Template::parse(&deep).is_err());
}

#[test]
fn what_does_not_fit_the_report() {
    for format in [
        "{{.Nope}}",
        "{{.Router.Nope}}",
        "{{.Proxy.Addresses}}",
        "{{.IPAM.Paxos.Quorum}}",
        "{{.Router.Name.X}}",
        "{{index .Router.Peers 7}}",
        "{{index .Router.Peers -1}}",
        "{{len .Ready}}",
        "{{range .Router.Port}}{{end}}",
        "{{eq 1 \"1\"}}",
        "{{lt true false}}",
        "{{not}}",
        "{{eq 1}}",
        "{{printf 1}}",
    ] {
        assert!(render(format, "01-single-idle.h1").is_err(), "{format}");
    }
}

#[test]
fn work_and_output_are_bounded() {
    let doubling = format!("{{{{$x := \"ab\"}}}}{}", "{{$x = print $x $x}}".repeat(100));
    let loops = format!(
        "{}{}",
        "{{range $.Router.Peers}}".repeat(40),
        "{{end}}".repeat(40)
    );
    let long = "{{json .}}".repeat(500);
    let wide = "{{printf \"%999999999d\" 1}}";
    let kept = format!("{{{{print {}}}}}", "(json .) ".repeat(500));
    for format in [doubling.as_str(), &loops, &long, wide, &kept] {
        let error = render_within(1 << 20, format, "04-three-dns.h1").unwrap_err();
        assert!(
            error.contains("too much") || error.contains("too large"),
            "{error}"
        );
    }
}
