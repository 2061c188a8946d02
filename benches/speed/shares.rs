//! What growd tells of shares, each of which it asks the kernel for: one of them against a bare service that answers the
//! same message, and pages of large pools against those of small ones.

use std::sync::Arc;
use std::time::{Duration, Instant};

use growd::wire::client;
use growd::wire::proto::share_service_client::ShareServiceClient;
use growd::wire::proto::{GetShareRequest, ListSharesRequest};
use tokio::runtime::Runtime;
use tonic::transport::Channel;

use crate::baselines::{Baseline, Kind};
use crate::ground::Ground;
use crate::growd::{Growd, call_for, quota_pool, share_id};
use crate::lab_node::{Filesystem, PRJQUOTA};
use crate::results::{Results, Row, Series, Target, milliseconds, rounds};

/// Shares of each pool, all of them on one file system.
const POOLS: [usize; 4] = [100, 1_000, 10_000, 100_000];
const PAGE: u32 = 100;
const PAGE_ROUNDS: usize = 30;
const LIMIT: u64 = 1 << 20;
const CLIENTS: [usize; 2] = [1, 128];
const ROUNDS: usize = 10;
const ROUND: Duration = Duration::from_millis(700);

/// One share on this machine itself.
pub fn here(results: &mut Results) {
    let Some(ground) = Ground::here() else { return };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let shares: Vec<(String, u32)> = (1_000..2_000).map(|id| (share_id(id), 0)).collect();
    ground.create_shares(&shares, LIMIT);
    let dir = tempfile::tempdir().unwrap();
    let (state, pool) = (dir.path().join("state"), ground.pool("home", ground.path()));
    let growd = runtime.block_on(Growd::start(dir.path(), &state, &pool));
    one(results, &runtime, &growd, dir.path(), ground.name());
}

pub fn in_lab(results: &mut Results) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let fs = Filesystem::xfs("ubda", PRJQUOTA);
    let dir = tempfile::tempdir().unwrap();
    let mut config = String::new();
    for count in POOLS {
        let path = fs.path().join(name(count));
        std::fs::create_dir(&path).unwrap();
        // 100 shares begin at id 100, 1,000 at 1,000, and so on.
        let ids = count..2 * count;
        let shares: Vec<(String, u32)> =
            ids.map(|id| (format!("{}/{}", name(count), share_id(id)), u32::try_from(id).unwrap())).collect();
        fs.create_shares(&shares, LIMIT);
        config += &quota_pool(&name(count), &path, "");
    }
    // Nothing here is written to the store.
    let growd = runtime.block_on(Growd::start(dir.path(), &dir.path().join("state"), &config));
    one(results, &runtime, &growd, dir.path(), "XFS, lab");
    pages(results, &runtime, &growd);
}

fn name(count: usize) -> String {
    format!("of-{count}")
}

/// A server, and clients with connections of their own.
struct Contender {
    name: &'static str,
    channels: Vec<Channel>,
    calls: Series,
}

/// GetShare, of the pool with 1,000 shares.
fn one(results: &mut Results, runtime: &Runtime, growd: &Growd, dir: &std::path::Path, ground: &str) {
    let shares: Arc<[String]> = (1_000..2_000).map(share_id).collect();
    let ask = async || {
        let request = GetShareRequest { share_id: shares[0].clone() };
        ShareServiceClient::new(growd.connect().await).get_share(request).await.unwrap().into_inner()
    };
    let message = runtime.block_on(ask());
    assert_eq!(message.size_bytes, Some(LIMIT));
    let bare = Baseline::start(Kind::Echo, &dir.join("bare"), &Default::default(), &message);
    let servers = [("growd", growd.endpoint().to_owned()), ("echo", bare.endpoint())];

    results.heading(&format!("GetShare ({ground})"));
    let header = ["server", "clients", "median", "p99", "per second"];
    let mut table = vec![header.map(str::to_owned).to_vec()];
    for clients in CLIENTS {
        let mut contenders = servers.each_ref().map(|(name, endpoint)| Contender {
            name,
            channels: (0..clients).map(|_| runtime.block_on(client::connect(endpoint, None)).unwrap()).collect(),
            calls: Series::default(),
        });
        rounds(&mut contenders, 1, |contender| drop(contender.round(runtime, &shares)));
        rounds(&mut contenders, ROUNDS, |contender| {
            let begin = Instant::now();
            let took = contender.round(runtime, &shares);
            contender.calls.add(took, begin.elapsed());
        });
        for contender in &contenders {
            table.push(contender.cells());
            results.throughput(&format!("GetShare, {ground}: {}", contender.name), clients, &contender.calls);
        }
        let [growd, echo] = [&contenders[0].calls, &contenders[1].calls];
        results.row(Row {
            path: format!("GetShare, {ground}, {clients} clients: throughput"),
            ours: format!("{:.0}/s", growd.throughput()),
            baseline: format!("echo {:.0}/s", echo.throughput()),
            ratio: growd.throughput_by(echo),
            target: if clients == 128 { Target::AtLeast(0.7) } else { Target::None },
        });
    }
    results.table(&table);
    results.note(
        "Clients and server share the CPUs; in the lab that is one, on which system calls cost more than on hardware. For \
         each answer growd opens the share's directory and asks the kernel for its project, limit and use, and for the \
         quota's state; echo answers a copy of a message that it has.",
    );
}

impl Contender {
    fn round(&self, runtime: &Runtime, shares: &Arc<[String]>) -> Vec<Duration> {
        let shares = Arc::clone(shares);
        call_for(runtime, ROUND, &self.channels, move |channel, number| {
            let request = GetShareRequest { share_id: shares[number % shares.len()].clone() };
            async move { drop(ShareServiceClient::new(channel).get_share(request).await.unwrap()) }
        })
    }

    fn cells(&self) -> Vec<String> {
        vec![
            self.name.to_owned(),
            self.channels.len().to_string(),
            milliseconds(self.calls.median()),
            self.calls.tail(99.0),
            format!("{:.0}", self.calls.throughput()),
        ]
    }
}

/// A pool, and where its listing is.
struct Listing {
    shares: usize,
    token: String,
    calls: Series,
}

impl Listing {
    /// Asks for the next page, or for the first one behind the last.
    async fn page(&mut self, channel: Channel) -> Duration {
        let (pool, page_token) = (name(self.shares), std::mem::take(&mut self.token));
        let request = ListSharesRequest { pool, page_size: PAGE, page_token, ..Default::default() };
        let begin = Instant::now();
        let page = ShareServiceClient::new(channel).list_shares(request).await.unwrap().into_inner();
        let took = begin.elapsed();
        assert_eq!(page.shares.len(), PAGE as usize);
        assert!(page.shares.iter().all(|share| share.size_bytes == Some(LIMIT)));
        self.token = page.next_page_token;
        took
    }
}

/// ListShares, page by page.
fn pages(results: &mut Results, runtime: &Runtime, growd: &Growd) {
    let mut listings = POOLS.map(|shares| Listing { shares, token: String::new(), calls: Series::default() });
    let channel = runtime.block_on(growd.connect());
    rounds(&mut listings, 1, |listing| _ = runtime.block_on(listing.page(channel.clone())));
    rounds(&mut listings, PAGE_ROUNDS, |listing| {
        let took = runtime.block_on(listing.page(channel.clone()));
        listing.calls.add(vec![took], took);
    });
    results.heading("ListShares");
    let mut table = vec![["shares in the pool", "median", "slowest"].map(str::to_owned).to_vec()];
    let [few, ..] = &listings;
    for listing in &listings {
        let median = listing.calls.median();
        table.push(vec![
            listing.shares.to_string(),
            milliseconds(median),
            milliseconds(listing.calls.percentile(100.0)),
        ]);
        results.cost("ListShares, a page of 100, by shares", listing.shares, median);
        if listing.shares > few.shares {
            results.row(Row {
                path: format!("ListShares, page of {PAGE}, {} shares in the pool: time", listing.shares),
                ours: milliseconds(median),
                baseline: format!("{} shares {}", few.shares, milliseconds(few.calls.median())),
                ratio: listing.calls.duration_by(&few.calls),
                target: if listing.shares == 100_000 { Target::AtMost(1.5) } else { Target::None },
            });
        }
    }
    results.table(&table);
    results.note(
        "The pools are on one file system and are read page by page; every share of a page is asked for in the kernel. \
         Which shares there are growd knows here from an earlier page: as long as a directory is the same, its listing \
         is believed for 60 s. The first page after that takes longer, for the directory is read again.",
    );
}
