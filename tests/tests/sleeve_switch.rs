//! Traffic moves from the fast path to sleeve when something blocks it, and back, and no connection
//! of a container breaks.

use std::io::Write as _;
use std::net::UdpSocket;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use weave_ctl::overlay::fastdp::heartbeat;
use weave_tests::ends::{
    attach_all, connection_address, everybody_reaches_everybody, longest_silence, outer,
};
use weave_tests::lab::firewall::VXLAN_PORT;
use weave_tests::lab::{Block, Host, Lab, Options, Plan, netns};
use weave_tests::process::{self, LIMIT};
use weave_tests::traffic::{Stream, bulk_tcp_amid};

const PING_INTERVAL: Duration = Duration::from_millis(20);
const FAST: &str = "established fastdp";
const SLOW: &str = "established sleeve";

/// Launches two hosts, lets `block` come and go during a TCP stream and pings from the first to the
/// second, and checks that `movers` tell of the change in both directions.
fn moves_and_returns(
    lab: &Lab,
    (fast, slow): (&str, &str),
    both_tell: bool,
    block: impl FnOnce(&Host, &Host) -> Result<Block>,
) -> Result<()> {
    lab.launch_all(&[])?;
    let (first, second) = (lab.host(1)?, lab.host(2)?);
    let pairs = [(first, second), (second, first)];
    // The first sends on what is blocked, so it must move in any case.
    let movers = if both_tell { &pairs[..] } else { &pairs[..1] };
    let ends = attach_all(lab)?;
    everybody_reaches_everybody(&ends)?;
    for (host, other) in pairs {
        let line = host.wait_connection_to(other, &[fast])?;
        ensure!(!line.contains("reason="), "a reason for what is best: {line}");
    }
    let connection = connection_address(first, second)?;
    let (one, two) = outer(&ends)?;
    let interval = PING_INTERVAL.as_secs_f64().to_string();
    let ping = one
        .0
        .spawn(&["ping", "-n", "-i", &interval, &two.1.to_string()])?;
    let stream = Stream::start(one.0.netns(), two.0.netns(), two.1)?;
    stream.wait_more(100)?;
    let _before = stream.longest_gap();
    let logged: Vec<usize> = movers.iter().map(|(host, _)| host.log().len()).collect();

    let block = block(first, second)?;
    for (host, other) in movers {
        host.wait_connection_to(other, &[slow, "reason="])?;
    }
    stream.wait_more(200).context("on sleeve")?;
    let there = stream.longest_gap();
    ensure!(block.dropped()? > 0, "the firewall saw nothing");

    block.lift()?;
    for (host, other) in movers {
        let line = host.wait_connection_to(other, &[fast])?;
        ensure!(!line.contains("reason="), "a reason for what is best: {line}");
    }
    stream.wait_more(200).context("back on the fast path")?;
    let back = stream.longest_gap();
    stream.finish()?;
    let ping = ping.interrupt(LIMIT)?;
    let silence = PING_INTERVAL * longest_silence(&ping.stdout);
    let now = connection_address(first, second)?;
    ensure!(
        now == connection,
        "the connection {connection} was made anew: {now}"
    );
    for ((host, other), before) in movers.iter().zip(logged) {
        let (log, name) = (host.log(), other.peer_name());
        let news = log.get(before..).context("the log has become shorter")?;
        let mut about = news
            .lines()
            .filter(|line| line.contains("fastdp to") && line.contains(&name));
        ensure!(
            about.any(|line| line.contains("is not in use: ")),
            "{}'s log says nothing of the change:\n{news}",
            host.name()
        );
        ensure!(
            about.any(|line| line.contains("is in use")),
            "{}'s log says nothing of the return:\n{news}",
            host.name()
        );
    }
    // Told, not judged: the machine may be busy. Not eprintln: the test harness would swallow it.
    let _nobody_listens = writeln!(
        std::io::stderr(),
        "to sleeve and back: pings silent for at most {silence:.2?}; TCP for {there:.2?} there, {back:.2?} back"
    );
    Ok(())
}

#[test]
fn a_firewall_blocks_the_fast_path() {
    Plan::mesh(2).test("blocked", |lab: &Lab| {
        moves_and_returns(lab, (FAST, SLOW), true, |a, b| lab.block_vxlan(a, b))
    });
}

#[test]
fn a_firewall_blocks_the_fast_path_in_trusted_subnets() {
    let options = Options::new()
        .password("correct horse battery staple")
        .trusted_subnets("172.30.0.0/16");
    Plan::mesh(2)
        .options(options)
        .test("blocked-trusted", |lab: &Lab| {
            let states = ("established unencrypted fastdp", "established unencrypted sleeve");
            moves_and_returns(lab, states, true, |a, b| lab.block_vxlan(a, b))
        });
}

#[test]
fn a_firewall_blocks_one_direction() {
    Plan::mesh(2).test("blocked-there", |lab: &Lab| {
        moves_and_returns(lab, (FAST, SLOW), false, |a, b| {
            lab.block_one_way(a, b, VXLAN_PORT)
        })
    });
}

#[test]
fn trust_on_one_side_only_is_no_trust() {
    let sealed = Options::new().password("correct horse battery staple");
    let plan = Plan::mesh(2)
        .host_options(1, sealed.clone().trusted_subnets("172.30.0.0/16"))
        .host_options(2, sealed);
    plan.test("one-trusts", |lab: &Lab| {
        lab.launch_all(&[])?;
        let ends = attach_all(lab)?;
        everybody_reaches_everybody(&ends)?;
        for host in lab.hosts() {
            host.wait_connections(1, "established encrypted")?;
        }
        Ok(())
    });
}

#[test]
fn a_transfer_at_full_speed_survives_the_change() {
    Plan::mesh(2).test("blocked-bulk", |lab: &Lab| {
        lab.launch_all(&[])?;
        let (first, second) = (lab.host(1)?, lab.host(2)?);
        let ends = attach_all(lab)?;
        everybody_reaches_everybody(&ends)?;
        first.wait_connection_to(second, &[FAST])?;
        second.wait_connection_to(first, &[FAST])?;
        let (one, two) = outer(&ends)?;
        let mut block = None;
        bulk_tcp_amid(one.0.netns(), two.0.netns(), two.1, 64 << 20, || {
            block = Some(lab.block_vxlan(first, second)?);
            Ok(())
        })
        .context("to sleeve")?;
        first.wait_connection_to(second, &[SLOW])?;
        let mut lifted = Ok(());
        bulk_tcp_amid(one.0.netns(), two.0.netns(), two.1, 64 << 20, || {
            lifted = block.take().map_or(Ok(()), Block::lift);
            Ok(())
        })
        .context("while it may return")?;
        lifted?;
        first.wait_connection_to(second, &[FAST])?;
        Ok(())
    });
}

#[test]
fn more_heartbeats_than_one_turn_reads_do_not_make_the_daemon_deaf() {
    Plan::mesh(2).test("deaf", |lab: &Lab| {
        lab.launch_all(&[])?;
        let (first, second) = (lab.host(1)?, lab.host(2)?);
        second.wait_connection_to(first, &[FAST])?;
        // They gather while nobody reads.
        let signal = |number| {
            second
                .daemon_pids()
                .iter()
                .for_each(|pid| process::signal(*pid, number))
        };
        signal(libc::SIGSTOP);
        let to = (second.address(), VXLAN_PORT);
        let sent = netns::inside(first.netns(), || {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            for uid in 0..2000 {
                socket.send_to(&heartbeat::packet(1, 2, uid, 100), to)?;
            }
            Ok(())
        });
        signal(libc::SIGCONT);
        sent?;
        let block = lab.block_vxlan(first, second)?;
        second.wait_connection_to(first, &[SLOW])?;
        block.lift()?;
        second.wait_connection_to(first, &[FAST]).map(drop)
    });
}

#[test]
fn when_both_are_blocked_the_connection_comes_back_by_itself() {
    Plan::mesh(2).test("blocked-both", |lab: &Lab| {
        lab.launch_all(&[])?;
        let (first, second) = (lab.host(1)?, lab.host(2)?);
        let ends = attach_all(lab)?;
        everybody_reaches_everybody(&ends)?;
        let (one, two) = outer(&ends)?;
        let blocks = [lab.block_vxlan(first, second)?, lab.block_sleeve(first, second)?];
        one.0.no_ping(two.1)?;
        for block in blocks {
            block.lift()?;
        }
        everybody_reaches_everybody(&ends)?;
        first.wait_connection_to(second, &[FAST])?;
        second.wait_connection_to(first, &[FAST])?;
        Ok(())
    });
}
