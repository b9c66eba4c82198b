// Compiles HLSL with Microsoft's FXC (d3dcompiler_47.dll) as wgpu-hal 30 does: entry point `main`, cs_5_1, strictness, no other flag.
//     x86_64-w64-mingw32-gcc -O2 -o fxc.exe .ci/fxc.c
//     wine fxc.exe DLL SECONDS FILE...
// Prints a line for each file: its name, `ok` or `error`, milliseconds; messages of an error follow. The exit code is 1 if one was not
// accepted, 2 if a file or the library cannot be read, 3 if one takes more than SECONDS: a thread at work cannot be stopped, so that ends it.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <windows.h>

// The constant of d3dcompiler.h.
#define D3DCOMPILE_ENABLE_STRICTNESS (1u << 11)
// FXC recurses deeply.
#define STACK_BYTES (64u << 20)

typedef struct ID3DBlob ID3DBlob;
struct ID3DBlob {
    const struct {
        HRESULT(WINAPI *QueryInterface)(ID3DBlob *, const void *, void **);
        ULONG(WINAPI *AddRef)(ID3DBlob *);
        ULONG(WINAPI *Release)(ID3DBlob *);
        void *(WINAPI *GetBufferPointer)(ID3DBlob *);
        SIZE_T(WINAPI *GetBufferSize)(ID3DBlob *);
    } *methods;
};

typedef HRESULT(WINAPI *D3DCompile)(const void *, SIZE_T, const char *, const void *, void *, const char *, const char *, UINT, UINT,
                                    ID3DBlob **, ID3DBlob **);

typedef struct {
    D3DCompile compile;
    const char *name;
    char *text;
    size_t size;
    HRESULT result;
    ID3DBlob *code, *messages;
} Task;

static DWORD WINAPI run(void *argument) {
    Task *task = argument;
    task->result = task->compile(task->text, task->size, task->name, NULL, NULL, "main", "cs_5_1", D3DCOMPILE_ENABLE_STRICTNESS, 0,
                                 &task->code, &task->messages);
    return 0;
}

// The contents of a file, and a zero after them; NULL where it cannot be read.
static char *read_all(const char *name, size_t *size) {
    FILE *file = fopen(name, "rb");
    if (!file) return NULL;
    fseek(file, 0, SEEK_END);
    long length = ftell(file);
    rewind(file);
    char *text = length < 0 ? NULL : malloc(length + 1);
    if (text) {
        *size = fread(text, 1, length, file);
        text[*size] = 0;
    }
    fclose(file);
    return text;
}

int main(int count, char **arguments) {
    if (count < 4) {
        fprintf(stderr, "usage: fxc DLL SECONDS FILE...\n");
        return 2;
    }
    HMODULE library = LoadLibraryA(arguments[1]);
    D3DCompile compile = library ? (D3DCompile)(void *)GetProcAddress(library, "D3DCompile") : NULL;
    if (!compile) {
        fprintf(stderr, "%s: no D3DCompile: error %lu\n", arguments[1], GetLastError());
        return 2;
    }
    DWORD limit = 1000 * atoi(arguments[2]);
    int code = 0;
    for (int nth = 3; nth < count; nth++) {
        Task task = {compile, arguments[nth]};
        task.text = read_all(task.name, &task.size);
        if (!task.text) {
            fprintf(stderr, "%s: cannot be read\n", task.name);
            return 2;
        }
        ULONGLONG start = GetTickCount64();
        HANDLE thread = CreateThread(NULL, STACK_BYTES, run, &task, STACK_SIZE_PARAM_IS_A_RESERVATION, NULL);
        if (!thread || WaitForSingleObject(thread, limit) != WAIT_OBJECT_0) {
            printf("%s error: more than %s s\n", task.name, arguments[2]);
            fflush(stdout);
            TerminateProcess(GetCurrentProcess(), 3);
        }
        int is_accepted = task.result >= 0 && task.code;
        printf("%s %s %llu\n", task.name, is_accepted ? "ok" : "error", GetTickCount64() - start);
        if (!is_accepted) {
            code = 1;
            if (task.messages) printf("%s\n", (char *)task.messages->methods->GetBufferPointer(task.messages));
        }
        if (task.messages) task.messages->methods->Release(task.messages);
        if (task.code) task.code->methods->Release(task.code);
        CloseHandle(thread);
        free(task.text);
        fflush(stdout);
    }
    return code;
}
