// Runs every operation of a connected queue pair on libibverbs, as requester and as responder, and checks the data.
//
// usage: exchange rc|uc GID-INDEX PATH-MTU           waits for a peer, answers its operations, then issues its own
//        exchange rc|uc GID-INDEX PATH-MTU ADDRESS   connects to a peer, issues its operations, then answers
//
// The peers agree over TCP, one line each way at every step; `peer/exchange.rs` speaks the same and documents it.

#include <arpa/inet.h>
#include <infiniband/verbs.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    PORT = 18600,
    REGION = 65536,
    // Where in the region the parts lie: exposed to the peer, private source and destination, the counter.
    SOURCE = 32768,
    COUNTER = 32760,
    MESSAGES = 8,
    MESSAGE_ROOM = 16384,
};

static struct ibv_context *context;
static struct ibv_pd *pd;
static struct ibv_cq *cq;
static struct ibv_qp *qp;
static struct ibv_mr *mr, *message_mr;
static _Alignas(4096) uint8_t region[REGION];
static uint8_t messages[MESSAGES][MESSAGE_ROOM];
static uint64_t peer_address;
static uint32_t peer_key;
static FILE *peer;

static void fail(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vprintf(format, arguments);
    va_end(arguments);
    printf("\n");
    exit(1);
}

static void check(bool holds, const char *what) {
    if (!holds) fail("failed: %s", what);
}

// The bytes of every message and region are told by a number, so that each side knows what to expect.
static uint8_t pattern(unsigned seed, unsigned at) { return (uint8_t)(seed * 101 + at * 7 + (at >> 8)); }

static void fill(uint8_t *to, unsigned seed, unsigned length) {
    for (unsigned i = 0; i < length; i++) to[i] = pattern(seed, i);
}

static void expect(const uint8_t *bytes, unsigned seed, unsigned length, const char *what) {
    for (unsigned i = 0; i < length; i++)
        if (bytes[i] != pattern(seed, i)) fail("failed: %s: byte %u is %02x, not %02x", what, i, bytes[i], pattern(seed, i));
}

static void say(const char *line) { fprintf(peer, "%s\n", line), fflush(peer); }

static void hear(const char *line) {
    char heard[256] = "";
    check(fgets(heard, sizeof heard, peer) != NULL, "the peer is there");
    heard[strcspn(heard, "\n")] = 0;
    if (strcmp(heard, line)) fail("failed: the peer says \"%s\", not \"%s\"", heard, line);
}

static struct ibv_wc completion(const char *what) {
    struct ibv_wc wc;
    int count;
    while ((count = ibv_poll_cq(cq, 1, &wc)) == 0) {}
    check(count == 1, "polling");
    if (wc.status != IBV_WC_SUCCESS) fail("failed: %s: %s", what, ibv_wc_status_str(wc.status));
    return wc;
}

static void post_receive(unsigned slot) {
    struct ibv_sge sge = {(uintptr_t)messages[slot], MESSAGE_ROOM, message_mr->lkey};
    struct ibv_recv_wr wr = {.wr_id = slot, .sg_list = &sge, .num_sge = 1}, *bad;
    check(ibv_post_recv(qp, &wr, &bad) == 0, "posting a receive");
}

static void post(enum ibv_wr_opcode opcode, unsigned local, unsigned length, unsigned remote, uint32_t immediate,
                 uint64_t compare_add, uint64_t swap, const char *what) {
    struct ibv_sge sge = {(uintptr_t)region + local, length, mr->lkey};
    struct ibv_send_wr wr = {.opcode = opcode, .sg_list = &sge, .num_sge = length ? 1 : 0, .send_flags = IBV_SEND_SIGNALED,
                             .imm_data = htonl(immediate)}, *bad;
    if (opcode == IBV_WR_ATOMIC_FETCH_AND_ADD || opcode == IBV_WR_ATOMIC_CMP_AND_SWP) {
        wr.wr.atomic.remote_addr = peer_address + remote;
        wr.wr.atomic.rkey = peer_key;
        wr.wr.atomic.compare_add = compare_add;
        wr.wr.atomic.swap = swap;
    } else {
        wr.wr.rdma.remote_addr = peer_address + remote;
        wr.wr.rdma.rkey = peer_key;
    }
    check(ibv_post_send(qp, &wr, &bad) == 0, what);
    completion(what);
}

static void send_pattern(unsigned seed, unsigned length, uint32_t immediate, const char *what) {
    fill(region + SOURCE, seed, length);
    post(immediate ? IBV_WR_SEND_WITH_IMM : IBV_WR_SEND, SOURCE, length, 0, immediate, 0, 0, what);
}

static void write_pattern(unsigned seed, unsigned length, unsigned remote, uint32_t immediate, const char *what) {
    fill(region + SOURCE, seed, length);
    post(immediate ? IBV_WR_RDMA_WRITE_WITH_IMM : IBV_WR_RDMA_WRITE, SOURCE, length, remote, immediate, 0, 0, what);
}

static void read_pattern(unsigned seed, unsigned length, unsigned remote, const char *what) {
    memset(region + SOURCE, 0, length);
    post(IBV_WR_RDMA_READ, SOURCE, length, remote, 0, 0, 0, what);
    expect(region + SOURCE, seed, length, what);
}

static void atomic(enum ibv_wr_opcode opcode, uint64_t compare_add, uint64_t swap, uint64_t before, const char *what) {
    post(opcode, SOURCE, 8, COUNTER, 0, compare_add, swap, what);
    uint64_t was;
    memcpy(&was, region + SOURCE, 8);
    if (was != before) fail("failed: %s: the word was %" PRIu64 ", not %" PRIu64, what, was, before);
}

static void request(bool reliable) {
    hear("ready");
    send_pattern(1, 100, 0, "send");
    send_pattern(2, 10000, 0, "send in several packets");
    send_pattern(3, 0, 0, "empty send");
    send_pattern(4, 64, 0x12345678, "send with immediate");
    send_pattern(5, 5001, 0x9abcdef0, "send with immediate in several packets");
    write_pattern(6, 9, 4095, 0, "write");
    write_pattern(7, 10000, 5001, 0, "write in several packets");
    write_pattern(8, 256, 16384, 0x0badcafe, "write with immediate");
    write_pattern(9, 3000, 20001, 0xfeedf00d, "write with immediate in several packets");
    if (reliable) {
        read_pattern(6, 9, 4095, "read");
        read_pattern(7, 10000, 5001, "read in several packets");
        atomic(IBV_WR_ATOMIC_FETCH_AND_ADD, 2, 0, 40, "fetch and add");
        atomic(IBV_WR_ATOMIC_CMP_AND_SWP, 42, 7, 42, "compare and swap that matches");
        atomic(IBV_WR_ATOMIC_CMP_AND_SWP, 42, 9, 7, "compare and swap that does not match");
    }
    say("done");
    hear("right");
}

static void expect_message(unsigned seed, unsigned length, uint32_t immediate, const char *what) {
    struct ibv_wc wc = completion(what);
    bool written = wc.opcode == IBV_WC_RECV_RDMA_WITH_IMM;
    if (wc.byte_len != length) fail("failed: %s: %u bytes, not %u", what, wc.byte_len, length);
    check(immediate ? wc.wc_flags & IBV_WC_WITH_IMM && ntohl(wc.imm_data) == immediate : !(wc.wc_flags & IBV_WC_WITH_IMM), what);
    if (!written) expect(messages[wc.wr_id], seed, length, what);
}

static void respond(bool reliable) {
    memset(region, 0, SOURCE);
    uint64_t counter = 40;
    memcpy(region + COUNTER, &counter, 8);
    for (unsigned slot = 0; slot < 6 + 1; slot++) post_receive(slot);
    say("ready");
    expect_message(1, 100, 0, "receive");
    expect_message(2, 10000, 0, "receive in several packets");
    expect_message(3, 0, 0, "empty receive");
    expect_message(4, 64, 0x12345678, "receive with immediate");
    expect_message(5, 5001, 0x9abcdef0, "receive with immediate in several packets");
    expect_message(8, 256, 0x0badcafe, "immediate of a write");
    expect_message(9, 3000, 0xfeedf00d, "immediate of a write in several packets");
    hear("done");
    expect(region + 4095, 6, 9, "written");
    expect(region + 5001, 7, 10000, "written in several packets");
    expect(region + 16384, 8, 256, "written with immediate");
    expect(region + 20001, 9, 3000, "written with immediate in several packets");
    memcpy(&counter, region + COUNTER, 8);
    check(counter == (reliable ? 7 : 40), "the counter");
    say("right");
}

static void make_queue_pair(bool reliable) {
    struct ibv_device **devices = ibv_get_device_list(NULL);
    check(devices && devices[0], "there is a device");
    check((context = ibv_open_device(devices[0])) != NULL, "opening the device");
    check((pd = ibv_alloc_pd(context)) != NULL, "a protection domain");
    int access = IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_READ | IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_ATOMIC;
    check((mr = ibv_reg_mr(pd, region, sizeof region, access)) != NULL, "registering the region");
    check((message_mr = ibv_reg_mr(pd, messages, sizeof messages, IBV_ACCESS_LOCAL_WRITE)) != NULL, "registering messages");
    check((cq = ibv_create_cq(context, 64, NULL, NULL, 0)) != NULL, "a completion queue");
    struct ibv_qp_init_attr init = {.send_cq = cq, .recv_cq = cq, .qp_type = reliable ? IBV_QPT_RC : IBV_QPT_UC,
                                    .cap = {.max_send_wr = 16, .max_recv_wr = 16, .max_send_sge = 1, .max_recv_sge = 1}};
    check((qp = ibv_create_qp(pd, &init)) != NULL, "a queue pair");
    struct ibv_qp_attr attr = {.qp_state = IBV_QPS_INIT, .port_num = 1, .qp_access_flags = access};
    check(!ibv_modify_qp(qp, &attr, IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS), "INIT");
}

static void connect_queue_pair(bool reliable, unsigned gid_index, unsigned path_mtu) {
    union ibv_gid gid;
    char address[INET6_ADDRSTRLEN], line[256];
    unsigned psn = getpid() & 0xffffff, peer_qpn, peer_psn;
    check(ibv_query_gid(context, 1, gid_index, &gid) == 0, "the GID");
    inet_ntop(AF_INET6, gid.raw, address, sizeof address);
    snprintf(line, sizeof line, "hello %u %u %s %" PRIu64 " %u", qp->qp_num, psn, address, (uint64_t)(uintptr_t)region, mr->rkey);
    say(line);
    check(fgets(line, sizeof line, peer) != NULL, "the peer is there");
    check(sscanf(line, "hello %u %u %45s %" SCNu64 " %u", &peer_qpn, &peer_psn, address, &peer_address, &peer_key) == 5, line);

    enum ibv_mtu mtu = IBV_MTU_256;
    while (128u << mtu < path_mtu) mtu++;
    struct ibv_qp_attr attr = {.qp_state = IBV_QPS_RTR, .path_mtu = mtu, .dest_qp_num = peer_qpn, .rq_psn = peer_psn,
                               .max_dest_rd_atomic = 4, .min_rnr_timer = 12,
                               .ah_attr = {.is_global = 1, .port_num = 1, .grh = {.sgid_index = gid_index, .hop_limit = 64}}};
    check(inet_pton(AF_INET6, address, &attr.ah_attr.grh.dgid) == 1, address);
    int mask = IBV_QP_STATE | IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN | IBV_QP_RQ_PSN;
    check(!ibv_modify_qp(qp, &attr, mask | (reliable ? IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER : 0)), "RTR");
    attr = (struct ibv_qp_attr){.qp_state = IBV_QPS_RTS, .sq_psn = psn, .timeout = 14, .retry_cnt = 7, .rnr_retry = 7,
                                .max_rd_atomic = 4};
    mask = IBV_QP_STATE | IBV_QP_SQ_PSN;
    int reliably = IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY | IBV_QP_MAX_QP_RD_ATOMIC;
    check(!ibv_modify_qp(qp, &attr, mask | (reliable ? reliably : 0)), "RTS");
}

// Waits for the peer, or connects to it where `address` is given.
static void meet(const char *address) {
    struct sockaddr_in6 name = {.sin6_family = AF_INET6, .sin6_port = htons(PORT)};
    int here = socket(AF_INET6, SOCK_STREAM, 0), one = 1;
    if (address) {
        check(inet_pton(AF_INET6, address, &name.sin6_addr) == 1, "an IPv6 address, or ::ffff:a.b.c.d");
        check(connect(here, (struct sockaddr *)&name, sizeof name) == 0, "connecting");
    } else {
        setsockopt(here, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
        check(bind(here, (struct sockaddr *)&name, sizeof name) == 0 && listen(here, 1) == 0, "listening");
        printf("listening\n");
        check((here = accept(here, NULL, NULL)) >= 0, "accepting");
    }
    check((peer = fdopen(here, "r+")) != NULL, "a stream");
}

int main(int count, char **arguments) {
    check(count == 4 || count == 5, "usage: exchange rc|uc GID-INDEX PATH-MTU [ADDRESS]");
    bool reliable = !strcmp(arguments[1], "rc");
    setvbuf(stdout, NULL, _IOLBF, 0);
    make_queue_pair(reliable);
    meet(arguments[4]);
    connect_queue_pair(reliable, atoi(arguments[2]), atoi(arguments[3]));
    if (count == 5) {
        request(reliable);
        respond(reliable);
    } else {
        respond(reliable);
        request(reliable);
    }
    printf("all right\n");
}
