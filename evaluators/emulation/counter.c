/* A QEMU plugin that counts the guest's (arm64) instructions by class.
 *
 * The guest calls getppid() as a mark; the counts so far are then written as one line of JSON to the file of `out=`. The text of the
 * program itself, a Python interpreter, is left out: what counts is what its libraries do. Declares QEMU's plugin API version 1
 * (QEMU 6 to 8), so no header is needed. Encodings: Arm Architecture Reference Manual, C4.1. Counts are exact for one thread. */
#include <inttypes.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))
#define GETPPID 173

typedef uint64_t plugin_id;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
typedef void (*on_block)(plugin_id, struct qemu_plugin_tb *);
typedef void (*on_syscall)(plugin_id, unsigned cpu, int64_t number, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t);
enum { ADD_U64 = 0 };

extern void qemu_plugin_register_vcpu_tb_trans_cb(plugin_id, on_block);
extern void qemu_plugin_register_vcpu_syscall_cb(plugin_id, on_syscall);
extern void qemu_plugin_register_vcpu_tb_exec_inline(struct qemu_plugin_tb *, int operation, void *counter, uint64_t value);
extern size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
extern uint64_t qemu_plugin_tb_vaddr(const struct qemu_plugin_tb *);
extern struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *, size_t);
extern const void *qemu_plugin_insn_data(const struct qemu_plugin_insn *);
extern uint64_t qemu_plugin_start_code(void);
extern uint64_t qemu_plugin_end_code(void);

EXPORT int qemu_plugin_version = 1;

enum { TOTAL, DOT, MMLA, INT_MLA, FMLA, LDST, BRANCH, CLASSES };
static const char *const names[CLASSES] = {"total", "dot", "mmla", "int_mla", "fmla", "ldst", "branch"};
static uint64_t counts[CLASSES];
static FILE *out;

static bool is_dot(uint32_t w) {
    return (w & 0x9fe0fc00) == 0x0e809400     /* SDOT, UDOT */
           || (w & 0x9fc0f400) == 0x0f80e000  /* by element */
           || (w & 0xbfe0fc00) == 0x0e809c00  /* USDOT */
           || (w & 0xbf40f400) == 0x0f00f000; /* USDOT, SUDOT by element */
}

static bool is_mmla(uint32_t w) {
    return (w & 0xdfe0fc00) == 0x4e80a400     /* SMMLA, UMMLA */
           || (w & 0xffe0fc00) == 0x4e80ac00; /* USMMLA */
}

static bool is_int_mla(uint32_t w) {
    return (w & 0x9f20fc00) == 0x0e208000     /* SMLAL, UMLAL */
           || (w & 0x9f20fc00) == 0x0e20c000  /* SMULL, UMULL */
           || (w & 0xbf20fc00) == 0x0e209400  /* MLA */
           || (w & 0x9f00f400) == 0x0f002000  /* SMLAL, UMLAL by element */
           || (w & 0x9f00f400) == 0x0f00a000  /* SMULL, UMULL by element */
           || (w & 0xbf00f400) == 0x2f000000; /* MLA by element */
}

static bool is_fmla(uint32_t w) {
    return (w & 0xbfa0fc00) == 0x0e20cc00     /* FMLA, float and double */
           || (w & 0xbf80f400) == 0x0f801000  /* by element */
           || (w & 0xbfe0fc00) == 0x0e400c00  /* FMLA, half */
           || (w & 0xbfc0f400) == 0x0f001000  /* by element */
           || (w & 0xff208000) == 0x1f000000; /* FMADD */
}

static bool is_branch(uint32_t w) {
    return (w & 0x7c000000) == 0x14000000     /* B, BL */
           || (w & 0x7c000000) == 0x34000000  /* CBZ, CBNZ, TBZ, TBNZ */
           || (w & 0xff000000) == 0x54000000  /* B.cond */
           || (w & 0xfe000000) == 0xd6000000; /* BR, BLR, RET */
}

/* The class of an instruction word; TOTAL for one that belongs to none. */
EXPORT int class_of(uint32_t w) {
    if (is_dot(w)) return DOT;
    if (is_mmla(w)) return MMLA;
    if (is_int_mla(w)) return INT_MLA;
    if (is_fmla(w)) return FMLA;
    if ((w & 0x0a000000) == 0x08000000) return LDST;
    return is_branch(w) ? BRANCH : TOTAL;
}

static void translated(plugin_id id, struct qemu_plugin_tb *block) {
    uint64_t found[CLASSES] = {0}, address = qemu_plugin_tb_vaddr(block);
    if (address >= qemu_plugin_start_code() && address < qemu_plugin_end_code()) return;
    found[TOTAL] = qemu_plugin_tb_n_insns(block);
    for (size_t i = 0; i < found[TOTAL]; i++) {
        uint32_t word;
        memcpy(&word, qemu_plugin_insn_data(qemu_plugin_tb_get_insn(block, i)), sizeof word);
        int class = class_of(word);
        if (class != TOTAL) found[class]++;
    }
    for (int class = 0; class < CLASSES; class++)
        if (found[class]) qemu_plugin_register_vcpu_tb_exec_inline(block, ADD_U64, &counts[class], found[class]);
}

static void called(plugin_id id, unsigned cpu, int64_t number, uint64_t a, uint64_t b, uint64_t c, uint64_t d, uint64_t e, uint64_t f, uint64_t g,
                   uint64_t h) {
    if (number != GETPPID) return;
    for (int class = 0; class < CLASSES; class++) fprintf(out, "%s\"%s\": %" PRIu64, class ? ", " : "{", names[class], counts[class]);
    fprintf(out, "}\n");
    fflush(out);
}

EXPORT int qemu_plugin_install(plugin_id id, const void *info, int argc, char **argv) {
    if (argc != 1 || strncmp(argv[0], "out=", 4) || !(out = fopen(argv[0] + 4, "w"))) return -1;
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    qemu_plugin_register_vcpu_syscall_cb(id, called);
    return 0;
}
