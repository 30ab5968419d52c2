/* The machine's real-time clock, stepped for the processes that preload this: what the kernel says plus an offset in ns,
 * read from the 8 bytes of the file $CLOCK_OFFSET_FILE, which may change at any time. The monotonic clock is left alone.
 *
 * A wait until a real time must follow the step too, as it does in the kernel: such waits are cut into slices. A wait for
 * a condition then ends "spuriously", which every caller must expect.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define NS 1000000000LL
#define SLICE_NS (20 * NS / 1000)

typedef int (*clock_fn)(clockid_t, struct timespec *);
typedef int (*cond_fn)(pthread_cond_t *, pthread_mutex_t *, const struct timespec *);
typedef int (*cond_clock_fn)(pthread_cond_t *, pthread_mutex_t *, clockid_t, const struct timespec *);
typedef int (*sem_fn)(sem_t *, const struct timespec *);
typedef int (*mutex_fn)(pthread_mutex_t *, const struct timespec *);
typedef int (*sleep_fn)(clockid_t, int, const struct timespec *, struct timespec *);

static volatile int64_t *offset_ns;
static clock_fn real_clock;
static cond_fn real_cond;
static cond_clock_fn real_cond_clock;
static sem_fn real_sem;
static mutex_fn real_mutex;
static sleep_fn real_sleep;

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("CLOCK_OFFSET_FILE");
    int file = path ? open(path, O_RDONLY) : -1;
    real_clock = (clock_fn)dlsym(RTLD_NEXT, "clock_gettime");
    real_cond = (cond_fn)dlvsym(RTLD_NEXT, "pthread_cond_timedwait", "GLIBC_2.3.2");
    real_cond_clock = (cond_clock_fn)dlsym(RTLD_NEXT, "pthread_cond_clockwait");
    real_sem = (sem_fn)dlsym(RTLD_NEXT, "sem_timedwait");
    real_mutex = (mutex_fn)dlsym(RTLD_NEXT, "pthread_mutex_timedlock");
    real_sleep = (sleep_fn)dlsym(RTLD_NEXT, "clock_nanosleep");
    if (file >= 0) {
        void *page = mmap(NULL, 8, PROT_READ, MAP_SHARED, file, 0);
        if (page != MAP_FAILED) offset_ns = page;
        close(file);
    }
}

static int64_t offset(void) { return offset_ns ? *offset_ns : 0; }
static int64_t to_ns(const struct timespec *t) { return t->tv_sec * NS + t->tv_nsec; }

static struct timespec of_ns(int64_t ns) {
    struct timespec t = {ns / NS, ns % NS};
    return t;
}

static int64_t kernel_ns(void) {
    struct timespec t;
    if (!real_clock) begin();
    real_clock(CLOCK_REALTIME, &t);
    return to_ns(&t);
}

/* The kernel's time at which to look again, at the latest, when waiting until the stepped time `until`. */
static int64_t slice(const struct timespec *until) {
    int64_t deadline = to_ns(until) - offset(), soon = kernel_ns() + SLICE_NS;
    if (deadline < 0) deadline = 0;
    return deadline < soon ? deadline : soon;
}

static int is_over(const struct timespec *until) { return kernel_ns() + offset() >= to_ns(until); }

int clock_gettime(clockid_t clock, struct timespec *t) {
    if (!real_clock) begin();
    int answer = real_clock(clock, t);
    if (answer == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) *t = of_ns(to_ns(t) + offset());
    return answer;
}

int gettimeofday(struct timeval *restrict t, void *restrict zone) {
    (void)zone;
    int64_t now = kernel_ns() + offset();
    t->tv_sec = now / NS;
    t->tv_usec = now % NS / 1000;
    return 0;
}

time_t time(time_t *t) {
    time_t now = (kernel_ns() + offset()) / NS;
    if (t) *t = now;
    return now;
}

static int cond_slice(pthread_cond_t *c, pthread_mutex_t *m, const struct timespec *until) {
    struct timespec t = of_ns(slice(until));
    int answer = real_cond(c, m, &t);
    return answer == ETIMEDOUT && !is_over(until) ? 0 : answer;
}

int pthread_cond_timedwait(pthread_cond_t *c, pthread_mutex_t *m, const struct timespec *until) {
    /* Of a condition made for the monotonic clock (glibc keeps that in bit 1 of its flags) the time is no real time. */
    if (((const unsigned int *)c)[9] & 2u) return real_cond(c, m, until);
    return cond_slice(c, m, until);
}

int pthread_cond_clockwait(pthread_cond_t *c, pthread_mutex_t *m, clockid_t clock, const struct timespec *until) {
    if (clock != CLOCK_REALTIME) return real_cond_clock(c, m, clock, until);
    struct timespec t = of_ns(slice(until));
    int answer = real_cond_clock(c, m, clock, &t);
    return answer == ETIMEDOUT && !is_over(until) ? 0 : answer;
}

int sem_timedwait(sem_t *s, const struct timespec *until) {
    for (;;) {
        struct timespec t = of_ns(slice(until));
        if (real_sem(s, &t) == 0) return 0;
        if (errno != ETIMEDOUT || is_over(until)) return -1;
    }
}

int pthread_mutex_timedlock(pthread_mutex_t *m, const struct timespec *until) {
    for (;;) {
        struct timespec t = of_ns(slice(until));
        int answer = real_mutex(m, &t);
        if (answer != ETIMEDOUT || is_over(until)) return answer;
    }
}

int clock_nanosleep(clockid_t clock, int flags, const struct timespec *t, struct timespec *left) {
    if (clock != CLOCK_REALTIME || !(flags & TIMER_ABSTIME)) return real_sleep(clock, flags, t, left);
    while (!is_over(t)) {
        struct timespec s = of_ns(slice(t));
        int answer = real_sleep(clock, flags, &s, left);
        if (answer != 0) return answer;
    }
    return 0;
}
