// Control of the emulator from C, for programs linked against it. Everything is optional: without
// a call the environment variable L4K_EMU ("mode=late,seed=3,sms=4") or the defaults apply.
#pragma once

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum { L4K_EMU_LATE = 0, L4K_EMU_EARLY = 1, L4K_EMU_RANDOM = 2 } l4k_emu_mode;

// Waits for pending kernels, then changes mode, seed and number of SMs.
void l4k_emu_configure(l4k_emu_mode mode, uint64_t seed, uint32_t sms);
// "key=value,...", as in the environment variable (docs/emulator.md). Returns 0, or -1 for a key or
// value it does not know; l4k_emu_refusal says why.
int l4k_emu_configure_text(const char* text);
// How often the machine was configured: what a program was told of it before holds no longer.
uint32_t l4k_emu_epoch(void);
// Forgets the error, its sticky state, pending work and counters. Allocations and settings stay.
void l4k_emu_reset(void);
// Text of the report that ended the run, since the last reset ("" if none); valid until the next
// call.
const char* l4k_emu_report(void);
// Its stable kind ("global-out-of-bounds"), "" if there is none.
const char* l4k_emu_report_kind(void);
// Reports since the last reset, each kind once per place: first those after which the run went on,
// then the one that ended it.
size_t l4k_emu_report_count(void);
// Text of one of them, "" past the last; its first word is the kind. Valid until the next call.
const char* l4k_emu_report_at(size_t index);
// Why the last runtime call was refused, as a sentence ("" if none was).
const char* l4k_emu_refusal(void);
// Counters of every kernel launched since the last reset, as text.
const char* l4k_emu_counters(void);
// Makes host memory usable as device memory, with its exact extent; calls nest. Unregistering
// first waits for pending kernels.
void l4k_emu_register_range(const void* pointer, size_t bytes);
void l4k_emu_unregister_range(const void* pointer, size_t bytes);
// The same, for a caching allocator that hands out a block on a cudaStream_t: another stream that
// touches it is reported ("use-before-allocation") unless it is ordered after this one, and so is
// the new owner, if it touches what another stream may still use from before ("stream-race").
void l4k_emu_allocate_range(const void* pointer, size_t bytes, void* stream);
// The owner has freed registered memory in stream order: kernels launched before may still use it,
// and must find it there; one launched from here on that does is reported ("use-after-free"), with
// `name`, which must outlive the range. Until it is unregistered.
void l4k_emu_end_range(const void* pointer, size_t bytes, const char* name);
// Finishes pending kernels. Returns 0, or -1 when there is a report.
int l4k_emu_synchronize(void);

#ifdef __cplusplus
}
#endif
