//! What every transport must do, run the same over each.

// A test's helpers fail like the test.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::sync::Arc;
use std::time::Duration;

use burstfs_net::testing::Realm;
use burstfs_net::{
    AuthError, ChannelLimits, ClientBulk, Deadline, Identity, InProcess, ProtocolError, Request, RpcError,
    ServerLimits, Ticket, Transport, Waiting,
};
use burstfs_proto::hello::{Refusal, Role};
use burstfs_proto::{Rpc, encode};
use burstfs_types::{Errno, InstanceId, Xid, limits};
use futures_util::FutureExt;
use futures_util::future::join_all;
use support::*;
use tokio::sync::oneshot;

macro_rules! conformance {
    ($($test:ident)*) => {
        mod in_process {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                super::$test(std::sync::Arc::new(super::InProcess::new(64 << 20))).await;
            })*
        }

        mod over_tcp {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                super::$test(super::tcp()).await;
            })*
        }

        #[cfg(feature = "rdma")]
        mod over_rdma {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            #[ignore = "needs an RDMA device (make rdma-test)"]
            async fn $test() {
                super::$test(super::rdma()).await;
            })*
        }
    };
}

conformance! {
    sixty_four_at_once_and_each_gets_its_own_reply
    empty_and_large_bodies
    bulk_both_ways
    a_service_error_is_an_errno
    a_panicking_handler_answers_eio
    an_abandoned_request_keeps_its_memory_until_its_reply
    a_deadline_ends_the_wait
    a_request_is_resent_under_its_xid_and_runs_beside_no_other
    a_given_up_request_does_not_run_again
    what_is_given_up_before_it_arrives_is_answered_and_not_run
    a_server_that_restarts_on_its_port_is_found_again
    a_server_that_starts_late_is_waited_for
    a_full_channel_makes_callers_wait
    a_full_channel_of_bytes_makes_callers_wait
    a_full_server_makes_its_client_wait_and_no_other
    a_stuck_connection_is_replaced
    shutdown_lets_requests_end
    closing_ends_every_wait
    strangers_are_told_why
    a_command_is_seen_as_one
    connecting_once_tells_nobody_from_somebody_else
}

type Any = Arc<dyn Transport>;

async fn sixty_four_at_once_and_each_gets_its_own_reply(transport: Any) {
    let world = World::new(transport).await;
    let channel = world.client(1).channel(world.address);
    let blocked = join_all((0..64).map(|key| {
        let channel = channel.clone();
        async move { channel.call(&Block { key }, soon()).await.unwrap() }
    }));
    let release = async {
        world.service.started(64).await;
        // In the other order than they came, and small ones overtake them meanwhile.
        for key in (0..64).rev() {
            let bytes = vec![key as u8; key];
            assert_eq!(channel.call(&Echo { bytes: bytes.clone() }, soon()).await.unwrap(), bytes);
            world.service.open(key as u32);
        }
    };
    let (counts, ()) = within("64 requests", async { tokio::join!(blocked, release) }).await;
    assert_eq!(counts, vec![1; 64]);
    world.end().await;
}

async fn empty_and_large_bodies(transport: Any) {
    let world = World::new(transport).await;
    let channel = world.client(1).channel(world.address);
    for len in [0, 1, 127, 128, 16 << 10, 100_000, limits::RPC_BODY_MAX_BYTES - 3] {
        let bytes = pattern(len);
        assert_eq!(channel.call(&Echo { bytes: bytes.clone() }, soon()).await.unwrap(), bytes);
    }
    let oversize = channel.call(&Echo { bytes: pattern(limits::RPC_BODY_MAX_BYTES) }, soon()).await;
    assert!(matches!(oversize, Err(RpcError::Protocol(ProtocolError::BodyTooLong(_)))), "{oversize:?}");
    world.end().await;
}

async fn bulk_both_ways(transport: Any) {
    let world = World::new(transport).await;
    let client = world.client(1);
    let channel = client.channel(world.address);
    for len in [0, 1, 4095, 4096, 100_001, 1 << 20, limits::RPC_BULK_MAX_BYTES] {
        for pieces in [1, 3] {
            let bytes = pattern(len);
            let sent = channel.call_sending(&Store { pieces }, bytes.clone(), soon()).await.unwrap();
            assert_eq!(sent, stored(&bytes));
            let mut region = client.region(len).await.unwrap();
            region.copy_from_slice(&bytes);
            assert_eq!(channel.call_sending(&Store { pieces }, region, soon()).await.unwrap(), stored(&bytes));
        }
        for pieces in [0, 1, 3] {
            for (asked, room) in [(len, len), (len / 2, len), (len, len / 2)] {
                let sink = client.region(room).await.unwrap();
                let fetched = channel.call_receiving(&Fetch { len: asked, pieces }, sink, soon()).await;
                let (said, region) = fetched.unwrap();
                assert_eq!(said, asked.min(room));
                assert!(region[..] == pattern(said)[..], "{said} bytes");
            }
        }
    }
    let long = vec![0; limits::RPC_BULK_MAX_BYTES + 1];
    let oversize = channel.call_sending(&Store { pieces: 1 }, long, soon()).await;
    assert!(matches!(oversize, Err(RpcError::Protocol(ProtocolError::BulkTooLong(_)))), "{oversize:?}");
    world.end().await;
}

async fn a_service_error_is_an_errno(transport: Any) {
    let world = World::new(transport).await;
    let client = world.client(1);
    let channel = client.channel(world.address);
    let refused = channel.call(&Refuse {}, soon()).await.unwrap_err();
    assert!(matches!(refused, RpcError::Errno(Errno::ENOSPC)));
    assert_eq!(refused.errno(), Errno::ENOSPC);
    let sink = client.region(5000).await.unwrap();
    let refused = channel.call_receiving(&Refuse {}, sink, soon()).await;
    assert!(matches!(refused, Err(RpcError::Errno(Errno::ENOSPC))), "{refused:?}");
    world.end().await;
}

async fn a_panicking_handler_answers_eio(transport: Any) {
    let world = World::new(transport).await;
    let channel = world.client(1).channel(world.address);
    let answer = channel.call(&Panic {}, soon()).await;
    assert!(matches!(answer, Err(RpcError::Errno(Errno::EIO))), "{answer:?}");
    assert_eq!(channel.call(&Echo { bytes: vec![1] }, soon()).await.unwrap(), [1]);
    world.end().await;
}

async fn an_abandoned_request_keeps_its_memory_until_its_reply(transport: Any) {
    let world = World::new(transport.clone()).await;
    let client = world.client(1);
    let channel = client.channel(world.address);
    let sink = client.region(1 << 20).await.unwrap();
    {
        let mut call = Box::pin(channel.call_receiving(&Block { key: 1 }, sink, soon()));
        tokio::select! {
            answer = &mut call => panic!("{answer:?}"),
            () = world.service.started(1) => {}
        }
    }
    assert_eq!(transport.regions().in_use_bytes(), 1 << 20);
    assert_eq!(client.xids().oldest_unanswered(), Xid(2));
    assert_eq!(channel.call(&Echo { bytes: vec![7] }, soon()).await.unwrap(), [7]);
    world.service.open(1);
    eventually("the late reply frees the region", || transport.regions().in_use_bytes() == 0).await;
    assert_eq!(channel.call(&Echo { bytes: vec![8] }, soon()).await.unwrap(), [8]);
    world.end().await;
}

async fn a_deadline_ends_the_wait(transport: Any) {
    let world = World::new(transport).await;
    let channel = world.client(1).channel(world.address);
    assert_eq!(channel.call(&Echo { bytes: vec![0] }, soon()).await.unwrap(), [0]);
    let late = channel.call(&Block { key: 1 }, shortly()).await.unwrap_err();
    assert!(matches!(late, RpcError::Timeout(Waiting::Reply)), "{late:?}");
    assert_eq!(late.errno(), Errno::EIO);
    world.service.open(1);
    assert_eq!(channel.call(&Echo { bytes: vec![9] }, soon()).await.unwrap(), [9]);
    world.end().await;
}

async fn a_request_is_resent_under_its_xid_and_runs_beside_no_other(transport: Any) {
    let world = World::new(transport).await;
    let client = world.client(3);
    let channel = client.channel(world.address);
    let mut sink = client.region(1 << 20).await.unwrap();
    sink.fill(1);
    let calls = async {
        tokio::join!(channel.call(&Block { key: 1 }, soon()), channel.call_receiving(&Block { key: 2 }, sink, soon()))
    };
    let cut = async {
        world.service.started(2).await;
        world.server().disconnect_all();
        eventually("the connection is cut", || world.server().peers().is_empty()).await;
        // A call goes over the next connection while those two still run for the lost one.
        assert_eq!(channel.call(&Echo { bytes: vec![1] }, soon()).await.unwrap(), [1]);
        assert_eq!(world.service.runs.borrow().len(), 2);
        world.service.open(1);
        world.service.open(2);
    };
    let ((first, second), ()) = within("resent requests", async { tokio::join!(calls, cut) }).await;
    assert_eq!((first.unwrap(), second.unwrap().0), (2, 2));
    for key in [1, 2] {
        let runs = world.service.runs_of(key);
        assert_eq!((runs.len(), runs[0].xid, runs[0].client), (2, runs[1].xid, runs[1].client));
        assert!(runs[1].oldest_unanswered <= runs[1].xid);
    }
    world.end().await;
}

async fn a_given_up_request_does_not_run_again(transport: Any) {
    let world = World::new(transport).await;
    let channel = world.client(3).channel(world.address);
    {
        let mut call = Box::pin(channel.call(&Block { key: 1 }, soon()));
        tokio::select! {
            answer = &mut call => panic!("{answer:?}"),
            () = world.service.started(1) => {}
        }
        world.server().disconnect_all();
        eventually("the connection is cut", || world.server().peers().is_empty()).await;
        // In process the request comes back to the client when its run ends; over TCP it is resent already.
        assert!((&mut call).now_or_never().is_none());
    }
    assert_eq!(channel.call(&Echo { bytes: vec![1] }, soon()).await.unwrap(), [1]);
    world.service.open(1);
    assert_eq!(channel.call(&Echo { bytes: vec![2] }, soon()).await.unwrap(), [2]);
    assert_eq!(world.service.runs_of(1).len(), 1);
    world.end().await;
}

async fn what_is_given_up_before_it_arrives_is_answered_and_not_run(transport: Any) {
    let world = World::new(transport).await;
    let link = world.transport.connect(world.address, &world.identity(1)).await.unwrap();
    let submit = |xid, bulk| {
        let (done, outcome) = oneshot::channel();
        let body = encode(&Echo { bytes: vec![] }).into();
        let request =
            Request { xid: Xid(xid), oldest: Xid(xid), opcode: Echo::OPCODE, body, bulk, ticket: Ticket::default() };
        link.submit(request, done);
        within("an answer", outcome)
    };
    assert!(submit(6, ClientBulk::None).await.unwrap().unwrap().result.is_ok());
    // It was given up when the other one was sent, and has been overtaken: the memory that it lent must come back.
    let sink = world.transport.regions().region(100_000).await.unwrap();
    let late = submit(5, ClientBulk::Sink(sink)).await.unwrap().unwrap();
    assert_eq!(late.result, Err(Errno::EINTR));
    assert_eq!(*world.service.log.lock().unwrap(), [Xid(6)]);
    drop((late, link));
    world.end().await;
}

async fn a_server_that_restarts_on_its_port_is_found_again(transport: Any) {
    let mut world = World::new(transport).await;
    let client = world.client(1);
    let channel = client.channel(world.address);
    let bytes = pattern(300_000);
    assert_eq!(channel.call_sending(&Store { pieces: 1 }, bytes.clone(), soon()).await.unwrap(), stored(&bytes));
    world.server.take().unwrap().shutdown().await;
    let calls = join_all((0..8).map(|_| channel.call_sending(&Store { pieces: 2 }, bytes.clone(), soon())));
    let mut calls = Box::pin(calls);
    // Nobody listens now: the calls wait and try.
    assert!(tokio::time::timeout(Duration::from_millis(30), &mut calls).await.is_err());
    let gone = channel.call(&Echo { bytes: vec![] }, shortly()).await.unwrap_err();
    assert!(matches!(gone, RpcError::Timeout(Waiting::Connection)), "{gone:?}");
    world.start(ServerLimits::default()).await;
    for answer in within("resent calls", calls).await {
        assert_eq!(answer.unwrap(), stored(&bytes));
    }
    world.end().await;
}

async fn a_server_that_starts_late_is_waited_for(transport: Any) {
    let mut world = World::new(transport).await;
    world.server.take().unwrap().shutdown().await;
    let channel = world.client(1).channel(world.address);
    let echo = Echo { bytes: vec![5] };
    let mut call = Box::pin(channel.call(&echo, soon()));
    assert!(tokio::time::timeout(Duration::from_millis(20), &mut call).await.is_err());
    world.start(ServerLimits::default()).await;
    assert_eq!(call.await.unwrap(), [5]);
    world.end().await;
}

async fn a_full_channel_makes_callers_wait(transport: Any) {
    let world = World::new(transport).await;
    let limits = ChannelLimits { requests_max: 2, ..ChannelLimits::default() };
    let channel = world.client_as(world.identity(1), limits).channel(world.address);
    let test = async {
        world.service.started(2).await;
        let third = channel.call(&Echo { bytes: vec![] }, shortly()).await.unwrap_err();
        assert!(matches!(third, RpcError::Timeout(Waiting::Place)), "{third:?}");
        world.service.open(1);
        assert_eq!(channel.call(&Echo { bytes: vec![3] }, soon()).await.unwrap(), [3]);
        world.service.open(2);
    };
    let calls =
        async { tokio::join!(channel.call(&Block { key: 1 }, soon()), channel.call(&Block { key: 2 }, soon())) };
    let ((first, second), ()) = within("a full channel", async { tokio::join!(calls, test) }).await;
    assert!(first.is_ok() && second.is_ok());
    world.end().await;
}

async fn a_full_channel_of_bytes_makes_callers_wait(transport: Any) {
    let world = World::new(transport).await;
    let limits = ChannelLimits { bulk_bytes_max: limits::RPC_BULK_MAX_BYTES, ..ChannelLimits::default() };
    let client = world.client_as(world.identity(1), limits);
    let channel = client.channel(world.address);
    let sink = client.region(4 << 20).await.unwrap();
    let test = async {
        world.service.started(1).await;
        let waits = channel.call_sending(&Store { pieces: 1 }, vec![0; 1], shortly()).await.unwrap_err();
        assert!(matches!(waits, RpcError::Timeout(Waiting::Place)), "{waits:?}");
        assert_eq!(channel.call(&Echo { bytes: vec![3] }, soon()).await.unwrap(), [3]);
        world.service.open(1);
    };
    let call = channel.call_receiving(&Block { key: 1 }, sink, soon());
    let (answer, ()) = within("a full channel", async { tokio::join!(call, test) }).await;
    // Nothing was put.
    assert_eq!(answer.unwrap().1.len(), 0);
    world.end().await;
}

async fn a_full_server_makes_its_client_wait_and_no_other(transport: Any) {
    let limits = ServerLimits { requests_max: 2, ..ServerLimits::default() };
    let world = World::with(transport, limits).await;
    let channel = world.client(1).channel(world.address);
    let other = world.client(2).channel(world.address);
    let blocks = [0, 1, 2].map(|key| Block { key });
    let calls = join_all(blocks.iter().map(|block| channel.call(block, soon())));
    let test = async {
        world.service.started(2).await;
        let late = channel.call(&Echo { bytes: vec![] }, shortly()).await.unwrap_err();
        assert!(matches!(late, RpcError::Timeout(Waiting::Reply)), "{late:?}");
        assert_eq!(world.service.runs.borrow().len(), 2);
        assert_eq!(other.call(&Echo { bytes: vec![4] }, soon()).await.unwrap(), [4]);
        (0..3).for_each(|key| world.service.open(key));
    };
    let (answers, ()) = within("a full server", async { tokio::join!(calls, test) }).await;
    assert!(answers.iter().all(Result::is_ok), "{answers:?}");
    world.end().await;
}

async fn a_stuck_connection_is_replaced(transport: Any) {
    let world = World::new(transport.clone()).await;
    let limits = ChannelLimits { requests_max: 1, ..ChannelLimits::default() };
    let channel = world.client_as(world.identity(1), limits).channel(world.address);
    assert_eq!(channel.call(&Echo { bytes: vec![0] }, soon()).await.unwrap(), [0]);
    let stuck = channel.call(&Block { key: 1 }, shortly()).await.unwrap_err();
    assert!(matches!(stuck, RpcError::Timeout(Waiting::Reply)), "{stuck:?}");
    let full = channel.call(&Echo { bytes: vec![] }, shortly()).await.unwrap_err();
    assert!(matches!(full, RpcError::Timeout(Waiting::Place)), "{full:?}");
    // What a service in this process uses cannot be taken away from it.
    if transport.name() == "in-process" {
        world.service.open(1);
    }
    assert_eq!(channel.call(&Echo { bytes: vec![1] }, soon()).await.unwrap(), [1]);
    world.service.open(1);
    world.end().await;
}

async fn shutdown_lets_requests_end(transport: Any) {
    let mut world = World::new(transport).await;
    let channel = world.client(1).channel(world.address);
    let server = world.server.take().unwrap();
    let mut call = Box::pin(channel.call(&Block { key: 1 }, soon()));
    tokio::select! {
        answer = &mut call => panic!("{answer:?}"),
        () = world.service.started(1) => {}
    }
    let mut shutdown = Box::pin(server.shutdown());
    assert!(tokio::time::timeout(Duration::from_millis(20), &mut shutdown).await.is_err());
    world.service.open(1);
    let (answer, ()) = within("shutdown", async { tokio::join!(call, shutdown) }).await;
    assert_eq!(answer.unwrap(), 1);
    world.end().await;
}

async fn closing_ends_every_wait(transport: Any) {
    let world = World::new(transport).await;
    let channel = world.client(1).channel(world.address);
    let test = async {
        world.service.started(1).await;
        channel.close();
    };
    let call = channel.call(&Block { key: 1 }, soon());
    let (answer, ()) = within("close", async { tokio::join!(call, test) }).await;
    assert!(matches!(answer, Err(RpcError::Closed)), "{answer:?}");
    let after = channel.call(&Echo { bytes: vec![] }, soon()).await;
    assert!(matches!(after, Err(RpcError::Closed)), "{after:?}");
    world.service.open(1);
    eventually("the server sees the end", || world.server().peers().is_empty()).await;
    world.end().await;
}

async fn strangers_are_told_why(transport: Any) {
    let world = World::new(transport).await;
    let refusal = async |identity: Identity| {
        let client = world.client_as(identity, ChannelLimits::default());
        client.channel(world.address).call(&WhoAmI {}, soon()).await.unwrap_err()
    };
    let instance = InstanceId::new("vc", 42, 1).unwrap();
    let refused = refusal(Identity { instance, ..world.identity(1) }).await;
    assert!(matches!(refused, RpcError::Refused(Refusal::Instance)), "{refused:?}");

    let refused = refusal(Identity { auth: world.member(UID + 1), ..world.identity(1) }).await;
    assert!(matches!(refused, RpcError::Refused(Refusal::Uid(uid)) if uid == UID + 1), "{refused:?}");
    assert_eq!(refused.errno(), Errno::EACCES);

    // The client does not talk to a server of somebody else either.
    let refused = refusal(Identity { uid: UID + 1, ..world.identity(1) }).await;
    assert!(matches!(refused, RpcError::Unauthenticated(AuthError::Uid { actual: UID, .. })), "{refused:?}");

    let refused = refusal(Identity { auth: Realm::new().member(UID), ..world.identity(1) }).await;
    assert!(matches!(refused, RpcError::Unauthenticated(AuthError::Payload)), "{refused:?}");

    let root = world.client_as(Identity { auth: world.member(0), ..world.identity(1) }, ChannelLimits::default());
    assert_eq!(root.channel(world.address).call(&WhoAmI {}, soon()).await.unwrap().0, 0);
    world.end().await;
}

async fn a_command_is_seen_as_one(transport: Any) {
    let world = World::new(transport).await;
    let identity = Identity { role: Role::Command, ..world.identity(1) };
    let command = world.client_as(identity, ChannelLimits::default());
    let channel = command.connect_once(world.address, soon()).await.unwrap();
    assert_eq!(channel.call(&WhoAmI {}, soon()).await.unwrap(), (UID, Role::Command));
    let peers = world.server().peers();
    assert_eq!((peers.len(), peers[0].client.node.get()), (1, u16::MAX));
    world.end().await;
}

async fn connecting_once_tells_nobody_from_somebody_else(transport: Any) {
    let mut world = World::new(transport).await;
    let other = Identity { instance: InstanceId::new("vc", 43, 0).unwrap(), ..world.identity(1) };
    let other = world.client_as(other, ChannelLimits::default());
    let refused = other.connect_once(world.address, soon()).await.err().unwrap();
    assert!(matches!(refused, RpcError::Refused(Refusal::Instance)), "{refused:?}");
    world.server.take().unwrap().shutdown().await;
    let refused = other.connect_once(world.address, soon()).await.err().unwrap();
    assert!(matches!(refused, RpcError::Unreachable(std::io::ErrorKind::ConnectionRefused)), "{refused:?}");
    let late = other.connect_once(world.address, Deadline::after(Duration::ZERO)).await.err().unwrap();
    assert!(matches!(late, RpcError::Timeout(_) | RpcError::Unreachable(_)), "{late:?}");
    let raw = other.channel(world.address).exchange(0x01f0, vec![], ClientBulk::None, shortly()).await;
    assert!(matches!(raw, Err(RpcError::Timeout(Waiting::Connection))), "{raw:?}");
    world.end().await;
}
