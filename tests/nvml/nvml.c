/* A driver's library that reads its cards from the text file beside it, its own name with .txt, anew at each call, so
 * that a test can change the machine while the service runs. Without the file the driver is not loaded. Lines:
 *
 *   init CODE                 what nvmlInit returns
 *   hang SECONDS              how long nvmlInit takes
 *   driver VERSION
 *   card UUID CAPABILITY TOTAL_MIB FREE_MIB MIG POWER_MW COUNTER NAME...
 *   process CARD PID MIB
 *
 * COUNTER 1: the card counts its energy, at POWER_MW since the library was loaded. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { OK = 0, INVALID = 2, UNSUPPORTED = 3, NOT_FOUND = 6, SMALL = 7, NOT_LOADED = 9 };
enum { CARDS = 8, PROCESSES = 16 };

struct card {
    char uuid[96], name[96];
    unsigned major, minor, mig, power, counter, processes;
    unsigned long long total, free;
    struct { unsigned pid; unsigned long long bytes; } process[PROCESSES];
};

struct machine {
    unsigned init, hang, cards;
    char driver[80];
    struct card card[CARDS];
};

static int look(struct machine *m) {
    static const char here;
    Dl_info library;
    char path[4096], line[512];
    FILE *file = NULL;
    memset(m, 0, sizeof *m);
    if (dladdr(&here, &library) && snprintf(path, sizeof path, "%s.txt", library.dli_fname) < (int)sizeof path)
        file = fopen(path, "r");
    if (!file)
        return NOT_LOADED;
    while (fgets(line, sizeof line, file)) {
        struct card *c = &m->card[m->cards];
        unsigned card, pid, code;
        unsigned long long mib;
        if (sscanf(line, "init %u", &code) == 1)
            m->init = code;
        else if (sscanf(line, "hang %u", &code) == 1)
            m->hang = code;
        else if (sscanf(line, "driver %79s", m->driver) == 1)
            continue;
        else if (m->cards < CARDS && sscanf(line, "card %95s %u.%u %llu %llu %u %u %u %95[^\n]", c->uuid, &c->major, &c->minor,
                                            &c->total, &c->free, &c->mig, &c->power, &c->counter, c->name) == 9)
            m->cards++;
        else if (sscanf(line, "process %u %u %llu", &card, &pid, &mib) == 3 && card < m->cards) {
            struct card *of = &m->card[card];
            if (of->processes < PROCESSES) {
                of->process[of->processes].pid = pid;
                of->process[of->processes++].bytes = mib << 20;
            }
        }
    }
    fclose(file);
    return OK;
}

/* A device is its number plus one. */
static int find(void *device, struct machine *m, struct card **card) {
    unsigned long index = (unsigned long)device - 1;
    int code = look(m);
    if (code)
        return code;
    if (index >= m->cards)
        return NOT_FOUND;
    *card = &m->card[index];
    return OK;
}

#define FIND(device)                          \
    struct machine m;                         \
    struct card *c;                           \
    int code = find(device, &m, &c);          \
    if (code)                                 \
        return code

static int copy(char *to, unsigned length, const char *from) {
    if (strlen(from) >= length)
        return SMALL;
    strcpy(to, from);
    return OK;
}

int nvmlInit_v2(void) {
    struct machine m;
    int code = look(&m);
    if (!code && m.hang)
        sleep(m.hang);
    return code ? code : (int)m.init;
}

int nvmlShutdown(void) { return OK; }

int nvmlSystemGetDriverVersion(char *version, unsigned length) {
    struct machine m;
    int code = look(&m);
    return code ? code : copy(version, length, m.driver);
}

int nvmlDeviceGetCount_v2(unsigned *count) {
    struct machine m;
    int code = look(&m);
    *count = m.cards;
    return code;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) {
    struct machine m;
    int code = look(&m);
    *device = (void *)(unsigned long)(index + 1);
    return code ? code : index < m.cards ? OK : INVALID;
}

int nvmlDeviceGetHandleByUUID(const char *uuid, void **device) {
    struct machine m;
    int code = look(&m);
    for (unsigned i = 0; !code && i < m.cards; i++)
        if (!strcmp(m.card[i].uuid, uuid)) {
            *device = (void *)(unsigned long)(i + 1);
            return OK;
        }
    return code ? code : NOT_FOUND;
}

int nvmlDeviceGetName(void *device, char *name, unsigned length) {
    FIND(device);
    return copy(name, length, c->name);
}

int nvmlDeviceGetUUID(void *device, char *uuid, unsigned length) {
    FIND(device);
    return copy(uuid, length, c->uuid);
}

struct pci {
    char legacy[16];
    unsigned domain, bus, device, id, subsystem;
    char bus_id[32];
};

int nvmlDeviceGetPciInfo_v3(void *device, struct pci *pci) {
    FIND(device);
    memset(pci, 0, sizeof *pci);
    pci->bus = (unsigned)(unsigned long)device;
    snprintf(pci->legacy, sizeof pci->legacy, "0000:%02X:00.0", pci->bus);
    snprintf(pci->bus_id, sizeof pci->bus_id, "00000000:%02X:00.0", pci->bus);
    return OK;
}

int nvmlDeviceGetCudaComputeCapability(void *device, int *major, int *minor) {
    FIND(device);
    *major = (int)c->major;
    *minor = (int)c->minor;
    return OK;
}

struct memory {
    unsigned version;
    unsigned long long total, reserved, free, used;
};

int nvmlDeviceGetMemoryInfo_v2(void *device, struct memory *memory) {
    FIND(device);
    memory->total = c->total << 20;
    memory->reserved = 0;
    memory->free = c->free << 20;
    memory->used = memory->total - memory->free;
    return OK;
}

int nvmlDeviceGetMigMode(void *device, unsigned *current, unsigned *pending) {
    FIND(device);
    *current = *pending = c->mig;
    return OK;
}

struct process {
    unsigned pid;
    unsigned long long bytes;
    unsigned gpu_instance, compute_instance;
};

int nvmlDeviceGetComputeRunningProcesses_v3(void *device, unsigned *count, struct process *processes) {
    FIND(device);
    unsigned room = *count;
    *count = c->processes;
    if (!processes || room < c->processes)
        return c->processes ? SMALL : OK;
    for (unsigned i = 0; i < c->processes; i++)
        processes[i] = (struct process){c->process[i].pid, c->process[i].bytes, ~0u, ~0u};
    return OK;
}

int nvmlDeviceGetGraphicsRunningProcesses_v3(void *device, unsigned *count, struct process *processes) {
    (void)device, (void)processes;
    *count = 0;
    return OK;
}

int nvmlDeviceGetEnforcedPowerLimit(void *device, unsigned *milliwatts) {
    FIND(device);
    *milliwatts = 700000;
    return OK;
}

int nvmlDeviceGetPowerUsage(void *device, unsigned *milliwatts) {
    FIND(device);
    *milliwatts = c->power;
    return OK;
}

static struct timespec loaded;

__attribute__((constructor)) static void begin(void) { clock_gettime(CLOCK_MONOTONIC, &loaded); }

int nvmlDeviceGetTotalEnergyConsumption(void *device, unsigned long long *millijoules) {
    FIND(device);
    if (!c->counter)
        return UNSUPPORTED;
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    double seconds = (double)(now.tv_sec - loaded.tv_sec) + (double)(now.tv_nsec - loaded.tv_nsec) / 1e9;
    *millijoules = (unsigned long long)(seconds * c->power);
    return OK;
}

int nvmlDeviceGetTemperature(void *device, int sensor, unsigned *celsius) {
    FIND(device);
    (void)sensor;
    *celsius = 61;
    return OK;
}

int nvmlDeviceGetClockInfo(void *device, int clock, unsigned *mhz) {
    FIND(device);
    *mhz = clock == 1 ? 1980 : 2619;
    return OK;
}

int nvmlDeviceGetUtilizationRates(void *device, unsigned rates[2]) {
    FIND(device);
    rates[0] = 97;
    rates[1] = 42;
    return OK;
}
