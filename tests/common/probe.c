/* The only program of the tests' images.
 *
 * Alone it waits for SIGTERM, which makes it the pods' sandbox. Given FOLDER
 * (where a loader of this machine looks for libraries) it says first what its
 * container has, a fact a line, as the test reads them:
 *
 *   env NAME=VALUE
 *   node PATH MAJOR:MINOR OPENED       a device node of the driver's
 *   made MAJOR:MINOR OPENED            the same, of a node that it made itself
 *   file PATH WRITABLE                 a file of the driver's
 *   is PATH DEVICE:INODE               which file that is
 *   loaded NAME PATH, unloadable NAME WHY
 *   call NAME:FUNCTION RESULT          for each further argument NAME:FUNCTION
 *   run PROGRAM STATUS                 for each further argument PROGRAM, looked
 *   said PROGRAM LINE                  for in PATH, and its first line
 *   node PATH MAJOR:MINOR OPENED       for each further argument FOLDER/
 *   file PATH WRITABLE, is PATH ...    for each further argument ?PATH
 *   loaded NAME PATH, unloadable ...   for each further argument +NAME
 *   done                               then it ends, if the last argument is "end"
 *
 * OPENED and WRITABLE are "ok" or the name of an error. */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <link.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

/* C libraries before 2.32 have no strerrorname_np. */
static const char *word(int failed) {
    static char number[16];
    switch (failed ? errno : 0) {
    case 0: return "ok";
    case EPERM: return "EPERM";
    case EACCES: return "EACCES";
    case ENXIO: return "ENXIO";
    case ENODEV: return "ENODEV";
    case EROFS: return "EROFS";
    case ENOENT: return "ENOENT";
    }
    snprintf(number, sizeof number, "E%d", errno);
    return number;
}

static int begins(const char *text, const char *with) {
    return strncmp(text, with, strlen(with)) == 0;
}

static void try_open(const char *path) {
    int fd = open(path, O_RDWR);
    printf(" %s\n", word(fd < 0));
    if (fd >= 0)
        close(fd);
}

static void list_nodes(const char *of) {
    DIR *folder = opendir(of);
    struct dirent *entry;
    while (folder && (entry = readdir(folder))) {
        char path[512];
        struct stat is;
        snprintf(path, sizeof path, "%s/%s", of, entry->d_name);
        if (!begins(entry->d_name, "nvidia") || stat(path, &is))
            continue;
        printf("node %s %u:%u", path, major(is.st_rdev), minor(is.st_rdev));
        try_open(path);
    }
    if (folder)
        closedir(folder);
}

/* Whether the container could use nodes that nobody gave it. */
static void make_nodes(void) {
    static const unsigned minors[] = {0, 1, 2, 3, 4, 5, 6, 7, 255};
    for (size_t i = 0; i < sizeof minors / sizeof *minors; i++) {
        printf("made 195:%u", minors[i]);
        if (mknod("/dev/made", S_IFCHR | 0600, makedev(195, minors[i])))
            printf(" %s\n", word(1));
        else
            try_open("/dev/made");
        unlink("/dev/made");
    }
}

/* In a process of its own: what one library loads must not help the next, and
 * one may end it. */
static void load(const char *name) {
    int status = 0;
    pid_t pid = fork();
    if (pid == 0) {
        void *library = dlopen(name, RTLD_NOW | RTLD_LOCAL);
        struct link_map *map = 0;
        if (!library)
            printf("unloadable %s %s\n", name, dlerror());
        else if (!dlinfo(library, RTLD_DI_LINKMAP, &map))
            printf("loaded %s %s\n", name, map->l_name);
        fflush(stdout);
        _exit(0);
    }
    waitpid(pid, &status, 0);
    if (!WIFEXITED(status))
        printf("unloadable %s ended by signal %d\n", name, WTERMSIG(status));
}

static void tell_file(const char *file) {
    struct stat is;
    printf("file %s %s\n", file, word(access(file, W_OK)));
    if (stat(file, &is) == 0)
        printf("is %s %llu:%llu\n", file, (unsigned long long)is.st_dev,
               (unsigned long long)is.st_ino);
}

static void list_files(const char *path, int libraries) {
    DIR *folder = opendir(path);
    struct dirent *entry;
    while (folder && (entry = readdir(folder))) {
        const char *name = entry->d_name;
        char file[512];
        if (!begins(name, "libcuda") && !begins(name, "libnvidia") && !begins(name, "nvidia-"))
            continue;
        snprintf(file, sizeof file, "%s/%s", path, name);
        tell_file(file);
        if (libraries)
            load(name);
    }
    if (folder)
        closedir(folder);
}

static void call(const char *name_and_function) {
    char name[256];
    const char *colon = strchr(name_and_function, ':');
    snprintf(name, sizeof name, "%.*s", (int)(colon - name_and_function), name_and_function);
    void *library = dlopen(name, RTLD_NOW | RTLD_LOCAL);
    int (*function)(unsigned) =
        library ? (int (*)(unsigned))dlsym(library, colon + 1) : 0;
    if (function)
        printf("call %s %d\n", name_and_function, function(0));
    else
        printf("call %s %s\n", name_and_function, dlerror());
}

static void run(const char *program) {
    char line[512];
    int status = 0, ends[2];
    if (pipe(ends))
        return;
    pid_t pid = fork();
    if (pid == 0) {
        dup2(ends[1], 1);
        dup2(ends[1], 2);
        close(ends[0]);
        execlp(program, program, (char *)0);
        _exit(127);
    }
    close(ends[1]);
    FILE *output = fdopen(ends[0], "r");
    if (fgets(line, sizeof line, output)) {
        line[strcspn(line, "\n")] = 0;
        printf("said %s %s\n", program, line);
    }
    while (fgets(line, sizeof line, output))
        ;
    fclose(output);
    waitpid(pid, &status, 0);
    printf("run %s %d\n", program, WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status));
}

static void answer(const char *question) {
    char folder[256];
    size_t length = strlen(question);
    if (question[length - 1] == '/') {
        snprintf(folder, sizeof folder, "%.*s", (int)length - 1, question);
        list_nodes(folder);
    } else if (*question == '?')
        tell_file(question + 1);
    else if (*question == '+')
        load(question + 1);
    else
        (strchr(question, ':') ? call : run)(question);
}

int main(int argc, char **argv) {
    sigset_t ends;
    int signal;
    sigemptyset(&ends);
    sigaddset(&ends, SIGTERM);
    sigaddset(&ends, SIGINT);
    sigprocmask(SIG_BLOCK, &ends, 0);
    setvbuf(stdout, 0, _IOLBF, 0);
    if (argc > 1) {
        for (char **variable = environ; *variable; variable++)
            printf("env %s\n", *variable);
        list_nodes("/dev");
        make_nodes();
        list_files(argv[1], 1);
        list_files("/usr/lib64", 0);
        list_files("/usr/bin", 0);
        int ends_itself = strcmp(argv[argc - 1], "end") == 0;
        for (int i = 2; i < argc - ends_itself; i++)
            answer(argv[i]);
        puts("done");
        if (ends_itself)
            return 0;
    }
    sigwait(&ends, &signal);
    return 0;
}
